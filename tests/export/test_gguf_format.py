"""GGUF files against the weights they were made of, decoded by the gguf package."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from loradag.config.problems import LoradagError
from loradag.export.gguf_format import round_weights, rounded, write_gguf
from loradag.models.loading import load_model
from loradag.runtime import Paths

HALF = 2.0**-11  # relative rounding of fp16, which scales are stored in too
# The most that a type may stray within a block of 32, as a fraction of the block's largest value
# (symmetric) or span (asymmetric). q4_0 and q5_0 lack a code for the far end: a whole step there.
STEPS = {"q4_0": 1 / 8, "q5_0": 1 / 16, "q8_0": 1 / 127 / 2, "q4_1": 1 / 15 / 2, "q5_1": 1 / 31 / 2}
MATRIX = "blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"


def tensors(path: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", *STEPS])
def test_decodes_to_the_merged_weights(exportable: Paths, tmp_path: Path, type: str) -> None:
    path = tmp_path / "model.gguf"
    assert write_gguf(exportable.merged, path, type, "tiny") == {}
    stored = tensors(path)[MATRIX[0]]
    assert stored.tensor_type.name.lower() == type
    decoded = gguf.quants.dequantize(stored.data, stored.tensor_type)
    weight = load_file(exportable.merged / "model.safetensors")[MATRIX[1]].numpy()
    blocks = weight.reshape(-1, 32)
    error = np.abs(decoded - weight).reshape(-1, 32)
    if type in STEPS:
        span = np.abs(blocks) if type.endswith("_0") else blocks - blocks.min(1, keepdims=True)
        bound = STEPS[type] * span.max(1, keepdims=True) + 2 * HALF * np.abs(blocks).max()
    else:
        bound = np.abs(blocks) * {"f32": 0.0, "f16": HALF, "bf16": 2.0**-8}[type] + 2.0**-25
    assert (error <= bound).all()
    norm = tensors(path)["blk.0.attn_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_1"])
def test_rounding_in_transformers_is_the_files(
    exportable: Paths, tmp_path: Path, type: str
) -> None:
    write_gguf(exportable.merged, tmp_path / "model.gguf", type, "tiny")
    stored = tensors(tmp_path / "model.gguf")[MATRIX[0]]
    weight = load_file(exportable.merged / "model.safetensors")[MATRIX[1]]
    decoded = gguf.quants.dequantize(stored.data, stored.tensor_type)
    assert np.array_equal(rounded(weight, type, False).numpy(), decoded)
    assert np.array_equal(rounded(weight.T.contiguous(), type, True).numpy(), decoded.T)


def test_rows_that_do_not_fit_fall_back_and_are_named(exportable: Paths, tmp_path: Path) -> None:
    """Ternary blocks are of 256 weights; the tiny model's rows have 64 and 128."""
    fallen = write_gguf(exportable.merged, tmp_path / "model.gguf", "tq2_0", "tiny")
    assert fallen[MATRIX[0]] == "f16"
    stored = tensors(tmp_path / "model.gguf")
    matrices = {name for name, tensor in stored.items() if len(tensor.shape) > 1}
    assert set(fallen) == matrices


@pytest.mark.parametrize("type", ["tq1_0", "tq2_0"])
def test_ternary_weights_are_exact(type: str) -> None:
    codes = torch.randint(-1, 2, (4, 512), generator=torch.Generator().manual_seed(0))
    weight = codes * 0.125  # a scale that fp16 holds
    assert torch.equal(rounded(weight, type, False), weight)


def test_same_model_same_bytes_wherever_it_lies(exportable: Paths, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another-name-v2-7B"
    shutil.copytree(exportable.merged, elsewhere)
    write_gguf(exportable.merged, tmp_path / "one.gguf", "q4_0", "tiny")
    write_gguf(elsewhere, tmp_path / "two.gguf", "q4_0", "tiny")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def test_an_unknown_tokenizer_is_refused(exportable: Paths, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers

    from loradag.models.tokenizer import load_tokenizer

    model = tmp_path / "model"
    shutil.copytree(exportable.merged, model)
    tokenizer = load_tokenizer(model)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.save_pretrained(model)
    with pytest.raises(LoradagError, match="export=safetensors"):
        write_gguf(model, tmp_path / "model.gguf", "f16", "tiny")


def test_an_untied_head_is_a_tensor_of_its_own(exportable: Paths, tmp_path: Path) -> None:
    import json

    model = tmp_path / "model"
    shutil.copytree(exportable.merged, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    weights = load_file(model / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"] * 2
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    write_gguf(model, tmp_path / "model.gguf", "f32", "tiny")
    assert np.array_equal(
        tensors(tmp_path / "model.gguf")["output.weight"].data, weights["lm_head.weight"].numpy()
    )


def test_a_weight_beyond_the_type_is_refused(exportable: Paths) -> None:
    """As after a learning rate of 1e6: a file of infinities loads, and computes nothing."""
    model = load_model(exportable.merged, torch.float32)
    model.get_submodule("model.layers.1.mlp.up_proj").weight.data[0, 0] = 1e6
    with pytest.raises(LoradagError, match=r"export\.type = f16: model\.layers\.1\.mlp\.up_proj"):
        round_weights(model, "f16")
    round_weights(model, "bf16")
