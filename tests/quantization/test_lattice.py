"""Weights on a training grid survive GGUF: only their scales are rounded, to fp16."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loradag.export.gguf_format import rounded, write_gguf
from loradag.models.activations import NOTE
from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.quantization.lattice import Grid, read_grid
from loradag.runtime import Paths

HALF = 2.0**-11  # relative rounding of fp16
FITTING = [(2, "q4_0"), (4, "q4_0"), (4, "q5_0"), (5, "q5_0"), (4, "q8_0"), (8, "q8_0")]
MATRIX = "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"


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


def test_the_file_holds_the_grid_and_all_else_in_16_bits(exportable: Paths, tmp_path: Path) -> None:
    """Also through the converter's reordering of a Llama's query and key rows."""
    model = tmp_path / "model"
    shutil.copytree(exportable.merged, model)
    grid = Grid(4, 32)
    weights = {
        name: AbsmaxFakeQuantizer(4, 32)(tensor) if name.endswith("proj.weight") else tensor
        for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (model / NOTE).write_text(
        json.dumps({"scheme": "symmetric", "bits": 4, "group_size": 32, "activation_bits": None})
    )
    assert read_grid(model) == grid
    assert write_gguf(model, tmp_path / "model.gguf", "q4_0", "tiny") == {
        "token_embd.weight": "f16"
    }
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    decoded = gguf.quants.dequantize(stored[MATRIX[0]].data, stored[MATRIX[0]].tensor_type)
    assert np.array_equal(rounded(weights[MATRIX[1]], "q4_0", False, grid).numpy(), decoded)
    matrices = [tensor for tensor in stored.values() if len(tensor.shape) > 1]
    kinds = {tensor.tensor_type.name for tensor in matrices if tensor.name.startswith("blk.")}
    assert kinds == {"Q4_0"}
