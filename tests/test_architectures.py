"""Models of other makers through quantize, train, merge and export: no layer's name is assumed."""

from pathlib import Path
from typing import Any

import pytest

from loradag.config.sections import Config
from loradag.runtime import Paths
from tests.conftest import run_stages, smoke_config
from tests.sentencepiece_model import save_model

# llama.cpp's converter wants a SentencePiece model of a Gemma; this tokenizer is a BPE.
# GPT-2's Conv1D is no linear layer to quantise. Qwen2's tokenizer adds its pad by itself.
MODELS = {
    "mistral": ["quantize=nf4", "export=gguf", "model.config.tie_word_embeddings=false"],
    "qwen2": ["quantize=nf4", "export=gguf", "model.pad_token='<|endoftext|>'"],
    "gemma": ["quantize=nf4", "export=safetensors", "+model.config.head_dim=16"],
    "gpt2": ["quantize=none", "export=gguf"],
}


@pytest.mark.parametrize("architecture", MODELS)
def test_goes_through(tmp_path: Path, architecture: str) -> None:
    of_type = f"model.config.model_type={architecture}"
    assert goes_through(tmp_path, *MODELS[architecture], of_type)["token_ids_match"]


@pytest.mark.parametrize(("kind", "pad"), [("llama", "'<unk>'"), ("gemma", "null")])
def test_goes_through_with_a_sentencepiece_tokenizer(tmp_path: Path, kind: str, pad: str) -> None:
    """As Llama 2 and Gemma have it, in the layout of a model hub."""
    save_model(kind, tmp_path / "model")
    model = ["model=local", f"model.path={tmp_path}/model", f"model.pad_token={pad}"]
    found = goes_through(tmp_path / "project", *model, "quantize=nf4", "export=gguf")
    # llama.cpp puts a space before a Llama's text also where it begins with one.
    assert found["token_ids_match"] == (kind == "gemma")


def goes_through(root: Path, *overrides: str) -> dict[str, Any]:
    """What the export found."""
    config: Config = smoke_config(
        *overrides, "train.max_steps=2", "train.warmup_steps=0", "train.checkpoint_steps=2",
        "export.type=q8_0", "export.rows=1", "merge.rows=2", "prepare.max_rows=100",
    )  # fmt: skip
    root.mkdir(exist_ok=True)
    stages = ("fetch", "prepare", "quantize", "train", "merge", "export")
    reports = run_stages(Paths(root), config, *stages)
    assert reports["merge"]["largest_layer_error"] < 1e-4
    (found,) = reports["export"]["formats"].values()
    assert found["perplexity"] == pytest.approx(found["expected_perplexity"], rel=0.01)
    return dict(found)
