"""Weights on a training grid survive GGUF: only their scales are rounded, to fp16."""

import gguf
import numpy as np
import pytest
import torch

from loradag.export.gguf_format import rounded
from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.quantization.lattice import Grid

HALF = 2.0**-11  # relative rounding of fp16
FITTING = [(2, "q4_0"), (4, "q4_0"), (4, "q5_0"), (5, "q5_0"), (4, "q8_0"), (8, "q8_0")]


def on_grid(shape: tuple[int, int], grid: Grid) -> torch.Tensor:
    weight = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0, : grid.group_size] = 0
    rounded: torch.Tensor = AbsmaxFakeQuantizer(grid.bits, grid.group_size)(weight)
    return rounded


@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize(("bits", "type"), FITTING)
def test_blocks_hold_the_grid(bits: int, type: str, group_size: int) -> None:
    grid = Grid(bits, group_size)
    assert grid.fits(type)
    weight = on_grid((16, 256), grid).numpy()
    blocks = grid.blocks(weight, type)
    assert blocks is not None
    kind = gguf.GGMLQuantizationType[type.upper()]
    decoded = gguf.quants.dequantize(blocks, kind)
    # fp16's subnormals are 2^-24 apart, which a code multiplies.
    assert np.allclose(decoded, weight, rtol=HALF, atol=2.0**-25 * 2 ** (bits - 1))
    if bits < 8:  # the same grid; of others llama.cpp's own quantiser makes another
        other = gguf.quants.dequantize(gguf.quants.quantize(weight, kind), kind)
        assert np.abs(other - weight).max() > 10 * np.abs(decoded - weight).max()


@pytest.mark.parametrize(
    ("grid", "type"),
    [(Grid(5, 32), "q4_0"), (Grid(8, 32), "q5_0"), (Grid(4, 16), "q4_0"), (Grid(4, 32), "q4_1")],
    ids=str,
)
def test_a_type_that_does_not_hold_the_grid_is_quantised_as_any(grid: Grid, type: str) -> None:
    assert not grid.fits(type)
    weight = on_grid((16, 256), Grid(grid.bits, 32))
    assert torch.equal(rounded(weight, type, False, grid), rounded(weight, type, False))


def test_other_weights_are_not_on_the_grid() -> None:
    weight = torch.randn((16, 256), generator=torch.Generator().manual_seed(0))
    assert Grid(4, 32).blocks(weight.numpy(), "q4_0") is None
    assert torch.equal(rounded(weight, "q4_0", False, Grid(4, 32)), weight.half().float())
