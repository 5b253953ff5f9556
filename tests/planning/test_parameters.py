"""The formulas against transformers' and peft's own counts."""

from typing import Any

import pytest

from loradag.config.adapter import Adapter
from loradag.config.composition import compose, plain
from loradag.planning.parameters import model_shape, total_parameters, trainable_parameters
from loradag.training.lora import lora_config

SIZES = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
FAMILIES: list[dict[str, Any]] = [
    {"model_type": "llama", "tie_word_embeddings": True},
    {"model_type": "llama"},
    {"model_type": "mistral"},
    {"model_type": "gemma", "head_dim": 16, "tie_word_embeddings": True},
    {"model_type": "qwen2"},
]
ADAPTERS: list[list[str]] = [
    [],
    ["adapter.r=3"],
    ["adapter=rslora"],
    ["adapter=dora"],
    ["adapter.target_modules=[q_proj,v_proj]"],
    ["adapter.target_modules='.*mlp[.].*_proj'"],
    ["adapter.bias=all"],
    ["adapter.bias=lora_only", "adapter.target_modules=[q_proj]"],
    ["adapter.modules_to_save=[lm_head]", "adapter.target_modules=[q_proj]"],
]


def make(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {key: value for key, value in (SIZES | config).items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **sizes))


@pytest.mark.parametrize("config", FAMILIES, ids=str)
def test_a_model_has_as_many_as_transformers_counts(config: dict[str, Any]) -> None:
    shape = model_shape({"source": "random", "config": SIZES | config})
    assert shape is not None
    assert shape.parameters == make(config).num_parameters()


@pytest.mark.parametrize("overrides", ADAPTERS, ids=str)
@pytest.mark.parametrize("config", [FAMILIES[1], FAMILIES[4]], ids=str)
def test_an_adapter_has_as_many_as_peft_counts(
    config: dict[str, Any], overrides: list[str]
) -> None:
    from peft import get_peft_model

    section = plain(compose(["model=tiny", "quantize=none", *overrides]))["adapter"]
    shape = model_shape({"source": "random", "config": SIZES | config})
    assert shape is not None
    tuned = get_peft_model(make(config), lora_config(Adapter(**section)))
    trainable, total = tuned.get_nb_trainable_parameters()
    assert trainable_parameters(shape, section) == trainable
    assert total_parameters(shape, section) == total


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("smollm2_135m", 134_515_008),
        ("gemma_2b", 2_506_172_416),
        ("llama2_7b_chat", 6_738_415_616),
    ],
)
def test_known_models_have_their_published_size(model: str, published: int) -> None:
    shape = model_shape(plain(compose([f"model={model}"]))["model"])
    assert shape is not None
    assert shape.parameters == published


def test_without_an_adapter_all_is_trained() -> None:
    params = plain(compose(["model=tiny", "adapter=none", "quantize=none"]))
    shape = model_shape(params["model"])
    assert shape is not None
    assert trainable_parameters(shape, params["adapter"]) == shape.parameters == 139_584


def test_an_unknown_family_has_no_formula() -> None:
    assert model_shape({"source": "hub", "config": {"model_type": "mamba"}}) is None
    assert model_shape({"source": "hub", "config": {}}) is None
