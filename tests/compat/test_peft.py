import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from transformers import AutoConfig, AutoModelForCausalLM

from loradag.compat.peft import (
    dequantized_weight,
    is_targeted,
    names_of_experts,
    pattern_value,
    register_layers,
)
from loradag.models.loading import load_model
from loradag.quantization.conversion import quantize_checkpoint
from tests.quantization.options import options


class Special(torch.nn.Linear):
    pass


class Adapted(Linear):
    pass


def test_layers_of_a_class_are_adapted_by_the_registered_one(tiny_base):
    model = load_model(tiny_base, torch.float32)
    for layer in model.model.layers:
        layer.mlp.up_proj.__class__ = Special
    config = LoraConfig(r=2, target_modules=["up_proj", "down_proj"])
    register_layers(config, {Special: Adapted})
    layer = get_peft_model(model, config).get_base_model().model.layers[0].mlp
    assert type(layer.up_proj) is Adapted
    assert type(layer.down_proj) is Linear
    assert "_custom_modules" not in config.to_dict(), "peft would save the classes"


def test_patterns_apply_as_in_peft(tiny_base):
    ranks = {"layers.1.mlp.down_proj": 3, ".*up_proj": 5}
    config = LoraConfig(r=2, target_modules="all-linear", rank_pattern=ranks)
    tuned = get_peft_model(load_model(tiny_base, torch.float32), config).get_base_model()
    for name, module in tuned.named_modules():
        if isinstance(module, Linear):
            assert pattern_value(ranks, name, 2) == module.r["default"], name


@pytest.mark.parametrize("scheme", ["none", "nf4", "int8", "asymmetric"])
def test_a_dequantised_weight_is_what_the_layer_multiplies_by(scheme, tiny_base, tmp_path):
    folder = tiny_base
    if scheme != "none":
        folder = tmp_path
        quantize_checkpoint(tiny_base, folder, options(scheme))
    layer = load_model(folder, torch.float32).model.layers[0].mlp.up_proj
    weight = dequantized_weight(layer)
    assert (weight.dtype, weight.shape) == (torch.float32, (layer.out_features, layer.in_features))
    # int8 rounds the inputs as well; a row of the identity has one value, so exactly.
    product = layer(torch.eye(layer.in_features)).T
    torch.testing.assert_close(product, weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("targets", [["up_proj", "layers.0.self_attn.q_proj"], r".*\.1\..*proj"])
def test_the_targeted_modules_are_those_that_peft_adapts(tiny_base, targets):
    model, config = load_model(tiny_base, torch.float32), LoraConfig(r=2, target_modules=targets)
    names = [name for name, _ in model.named_modules()]
    tuned = get_peft_model(model, config).get_base_model()
    adapted = {name for name, module in tuned.named_modules() if isinstance(module, Linear)}
    assert {name for name in names if is_targeted(config, name)} == adapted


def test_linear_layers_with_a_name_of_experts_are_left_out_by_peft():
    """Without that, the names are of no use."""
    config = AutoConfig.for_model(
        "qwen3_moe", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4,
        moe_intermediate_size=16, mlp_only_layers=[0],
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    linear = {n.rpartition(".")[2] for n, m in model.named_modules() if type(m) is torch.nn.Linear}
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).get_base_model()
    adapted = {n.rpartition(".")[2] for n, m in tuned.named_modules() if isinstance(m, Linear)}
    assert linear - adapted - {"lm_head"} == names_of_experts() & linear != set()
