"""Weights on a training lattice in a GGUF file, through llama.cpp's converter."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
from safetensors.torch import load_file, save_file

from loradag.checkpoints.model_files import NOTE
from loradag.export.gguf_format import rounded, write_gguf
from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.quantization.lattice import Lattice, read_lattice
from loradag.runtime import Paths

MATRIX = "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"


def test_the_file_stores_the_lattice_and_the_rest_in_f16(exportable: Paths, tmp_path: Path) -> None:
    """Also through the converter's reordering of a Llama's query and key rows."""
    model = tmp_path / "model"
    shutil.copytree(exportable.merged, model)
    lattice = Lattice(4, 32)
    weights = {
        name: AbsmaxFakeQuantizer(4, 32)(tensor) if name.endswith("proj.weight") else tensor
        for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (model / NOTE).write_text(
        json.dumps({"scheme": "symmetric", "bits": 4, "group_size": 32, "activation_bits": None})
    )
    assert read_lattice(model) == lattice
    assert write_gguf(model, tmp_path / "model.gguf", "q4_0", "tiny") == {
        "token_embd.weight": "f16"
    }
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    decoded = gguf.quants.dequantize(stored[MATRIX[0]].data, stored[MATRIX[0]].tensor_type)
    assert np.array_equal(rounded(weights[MATRIX[1]], "q4_0", False, lattice).numpy(), decoded)
    matrices = [tensor for tensor in stored.values() if len(tensor.shape) > 1]
    kinds = {tensor.tensor_type.name for tensor in matrices if tensor.name.startswith("blk.")}
    assert kinds == {"Q4_0"}
