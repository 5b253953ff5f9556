"""The formulas against transformers' and peft's own counts."""

from dataclasses import replace
from typing import Any

import pytest

from loradag.config.adapter import Adapter
from loradag.config.composition import compose, plain
from loradag.config.problems import LoradagError
from loradag.planning.memory import train_bytes
from loradag.planning.meta_model import shape_on_meta
from loradag.planning.parameters import (
    _has_formula,
    llama_shape,
    model_shape,
    total_parameters,
    trainable_parameters,
)
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
OTHERS: list[dict[str, Any]] = [
    {"model_type": "phi"},  # biases everywhere, also in norms and the output
    {"model_type": "qwen3"},
    {"model_type": "gemma3_text", "head_dim": 8},
    {"model_type": "mixtral", "num_local_experts": 4},  # its experts are no linear layers
    # One layer of three has experts.
    {
        "model_type": "qwen3_moe",
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [0, 2],
    },
]
EXPERTS = OTHERS[-2:]
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


@pytest.mark.parametrize("config", FAMILIES, ids=str)
def test_the_formula_gives_the_shape_of_the_model_on_the_meta_device(
    config: dict[str, Any],
) -> None:
    config = SIZES | config
    assert _has_formula(config)
    assert llama_shape(config) == replace(shape_on_meta(config), config=None)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
        {"model_type": "gemma"},  # its heads are 256 wide, whatever the hidden size
        *OTHERS,
    ],
    ids=str,
)
def test_what_the_formula_does_not_cover_is_counted_on_the_meta_device(
    config: dict[str, Any],
) -> None:
    shape = model_shape({"source": "random", "config": SIZES | config})
    assert shape is not None
    assert shape.parameters == make(config).num_parameters()
    assert train_bytes(shape, plain(compose(["model=tiny", "adapter.dropout=0"])), 64) > 0


@pytest.mark.parametrize("overrides", ADAPTERS, ids=str)
@pytest.mark.parametrize("config", [FAMILIES[1], FAMILIES[4], *OTHERS], ids=str)
def test_an_adapter_has_as_many_as_peft_counts(
    config: dict[str, Any], overrides: list[str]
) -> None:
    from peft import get_peft_model

    section = plain(compose(["model=tiny", "quantize=none", "adapter.dropout=0", *overrides]))[
        "adapter"
    ]
    if config["model_type"] == "phi" and "mlp" in str(section["target_modules"]):
        pytest.skip("its feed-forward layers have other names")
    if config in EXPERTS and section["variant"] == "dora":
        pytest.skip("peft has no DoRA of experts")
    shape = model_shape({"source": "random", "config": SIZES | config})
    assert shape is not None
    model = make(config)
    tuned = get_peft_model(model, lora_config(Adapter(**section), model))
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


def test_an_adapter_that_experts_do_not_take_is_an_error_with_its_reason() -> None:
    shape = model_shape({"source": "random", "config": SIZES | OTHERS[-1]})
    section = plain(compose(["model=tiny", "adapter.dropout=0.1"]))["adapter"]
    assert shape is not None
    with pytest.raises(LoradagError, match=r"adapter\.dropout = 0\.1: .*experts\.gate_up_proj"):
        trainable_parameters(shape, section)


def test_a_model_that_transformers_does_not_have_has_no_shape() -> None:
    assert model_shape({"source": "hub", "config": {"model_type": "of_tomorrow"}}) is None
    assert model_shape({"source": "hub", "config": {"model_type": "vit"}}) is None
    assert model_shape({"source": "hub", "config": {}}) is None
