"""Weights on a training lattice survive GGUF: only their scales are rounded, to fp16."""

import gguf
import numpy as np
import pytest
import torch

from loradag.export.gguf_format import rounded
from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.quantization.lattice import Lattice

HALF = 2.0**-11  # relative rounding of fp16
FITTING = [(2, "q4_0"), (4, "q4_0"), (4, "q5_0"), (5, "q5_0"), (4, "q8_0"), (8, "q8_0")]


def on_lattice(shape: tuple[int, int], lattice: Lattice) -> torch.Tensor:
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0, : lattice.group_size] = 0
    rounded: torch.Tensor = AbsmaxFakeQuantizer(lattice.bits, lattice.group_size)(weight)
    return rounded


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize(("bits", "type"), FITTING)
def test_blocks_encode_the_lattice(bits: int, type: str, group_size: int) -> None:
    lattice = Lattice(bits, group_size)
    assert lattice.fits(type)
    weight = on_lattice((16, 256), lattice).numpy()
    blocks = lattice.encode(weight, type)
    assert blocks is not None
    kind = gguf.GGMLQuantizationType[type.upper()]
    decoded = gguf.quants.dequantize(blocks, kind)
    # fp16's subnormals are 2^-24 apart, which a code multiplies.
    assert np.allclose(decoded, weight, rtol=HALF, atol=2.0**-25 * 2 ** (bits - 1))
    if bits < 8:  # the same lattice; of others llama.cpp's own quantiser makes another
        other = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        assert np.abs(other - weight).max() > 10 * np.abs(decoded - weight).max()


@pytest.mark.parametrize(
    ("lattice", "type"),
    [
        (Lattice(5, 32), "q4_0"),
        (Lattice(8, 32), "q5_0"),
        (Lattice(4, 16), "q4_0"),
        (Lattice(4, 32), "q4_1"),
    ],
    ids=str,
)
def test_other_types_quantise_it_like_any_weight(lattice: Lattice, type: str) -> None:
    assert not lattice.fits(type)
    weight = on_lattice((16, 256), Lattice(lattice.bits, 32))
    assert torch.equal(rounded(weight, type, False, lattice), rounded(weight, type, False))


def test_other_weights_are_not_on_the_lattice() -> None:
    weight = torch.randn((16, 256), generator=torch.Generator().manual_seed(0))
    assert Lattice(4, 32).encode(weight.numpy(), "q4_0") is None
    assert torch.equal(rounded(weight, "q4_0", False, Lattice(4, 32)), weight.half().float())
