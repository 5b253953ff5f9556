"""Models of other makers through quantize, train, merge and export: no layer's name is assumed."""

from pathlib import Path

import pytest

from conf.schema import Config
from stages.runtime import Paths
from tests.conftest import run_stages, smoke_config

# llama.cpp's converter wants a SentencePiece model of a Gemma; the tests' tokenizer is a BPE.
# GPT-2's Conv1D is no linear layer to quantise. Qwen2's tokenizer adds its pad by itself.
MODELS = {
    "mistral": ["quantize=nf4", "export=gguf", "model.config.tie_word_embeddings=false"],
    "qwen2": ["quantize=nf4", "export=gguf", "model.pad_token='<|endoftext|>'"],
    "gemma": ["quantize=nf4", "export=safetensors", "+model.config.head_dim=16"],
    "gpt2": ["quantize=none", "export=gguf"],
}


@pytest.mark.parametrize("architecture", MODELS)
def test_goes_through(tmp_path: Path, architecture: str) -> None:
    config: Config = smoke_config(
        *MODELS[architecture], f"model.config.model_type={architecture}", "train.max_steps=2",
        "train.warmup_steps=0", "train.checkpoint_steps=2", "export.type=q8_0", "export.rows=1",
        "merge.rows=2", "prepare.max_rows=100",
    )  # fmt: skip
    stages = ("fetch", "prepare", "quantize", "train", "merge", "export")
    reports = run_stages(Paths(tmp_path), config, *stages)
    assert reports["merge"]["largest_layer_error"] < 1e-4
    (found,) = reports["export"]["formats"].values()
    assert found["token_ids_match"]
    assert found["perplexity"] == pytest.approx(found["expected_perplexity"], rel=0.01)
