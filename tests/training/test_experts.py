"""Adapters of experts: which matrices they reach, and what is refused."""

from typing import Any

import pytest
import torch

from loradag.config.adapter import Adapter
from loradag.config.problems import LoradagError
from loradag.training.lora import lora_config

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "head_dim": 8,
}  # fmt: skip
QWEN = {"num_experts": 4, "moe_intermediate_size": 16}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": QWEN | {"mlp_only_layers": [0]},  # a layer without experts
    "qwen2_moe": QWEN | {"shared_expert_intermediate_size": 24},  # and linear layers beside them
    "gpt_oss": {"num_local_experts": 4},  # (experts, in, out), and biases
    "granitemoe": {"num_local_experts": 4},
}
ADAPTER = Adapter(
    variant="lora", r=2, alpha=4, dropout=0.0, bias="none", target_modules="all-linear",
    modules_to_save=None, bits=None, start=None,
)  # fmt: skip


def make(model_type: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **(SIZES | MODELS[model_type]))
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def changed(**adapter: Any) -> Adapter:
    from dataclasses import replace

    return replace(ADAPTER, **adapter)


@pytest.mark.parametrize("model_type", MODELS)
def test_all_linear_adds_r_for_each_row_and_column_of_every_matrix(model_type: str) -> None:
    from peft import get_peft_model

    model = make(model_type)
    matrices = {
        name: parameter
        for name, parameter in model.named_parameters()
        if ".layers." in name and parameter.dim() > 1 and "bias" not in name
    }
    expected = sum(
        ADAPTER.r * (p.shape[-1] + p.shape[-2]) * (p.shape[0] if p.dim() == 3 else 1)
        for p in matrices.values()
    )
    tuned = get_peft_model(model, lora_config(ADAPTER, model))
    assert tuned.get_nb_trainable_parameters()[0] == expected


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        (["q_proj", "down_proj"], ["q_proj", "experts.down_proj", "mlp.down_proj.weight"]),
        (["gate"], ["mlp.gate.weight"]),
        (["experts"], ["experts.down_proj", "experts.gate_up_proj"]),
        (r".*layers\.1\..*(q_proj|gate_up_proj)", ["q_proj", "experts.gate_up_proj"]),
    ],
    ids=str,
)
def test_what_is_named_is_adapted_and_nothing_else(targets: Any, expected: list[str]) -> None:
    config = lora_config(changed(target_modules=targets), make("qwen3_moe"))
    found = {*config.target_modules, *(config.target_parameters or ())}
    assert found
    assert {end for end in expected for name in found if name.endswith(end)} == set(expected)
    assert all(name.endswith(tuple(expected)) for name in found)


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        ({"dropout": 0.1}, r"adapter\.dropout = 0\.1: .*experts.*adapter\.dropout=0"),
        ({"variant": "dora"}, r"adapter\.variant = dora: .*experts.*adapter=lora"),
        ({"target_modules": ["q_proj", "w1"]}, r"adapter\.target_modules: 'w1'.*gate_up_proj"),
        ({"target_modules": "no"}, r"adapter\.target_modules: 'no'"),
    ],
)
def test_what_cannot_be_adapted_is_refused(adapter: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoradagError, match=reason):
        lora_config(changed(**adapter), make("mixtral"))


def test_layers_beside_experts_take_every_form() -> None:
    adapter = changed(variant="dora", dropout=0.1, target_modules=["q_proj"])
    config = lora_config(adapter, make("mixtral"))
    assert config.use_dora
    assert config.target_parameters is None
