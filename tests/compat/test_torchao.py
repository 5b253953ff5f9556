from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torchao.quantization import Int8Tensor, MappingType, PerRow, PerTensor

from loradag.compat.torchao import activation_options
from loradag.models.loading import load_model
from loradag.quantization.calibration import calibrate, layer_inputs
from loradag.quantization.conversion import quantize_checkpoint
from loradag.quantization.dequantize import dequantized
from tests.quantization.options import options

ROWS = [[1, *range(20 * i + 3, 20 * i + 23)] for i in range(4)]


def lora_gradients(model):
    torch.manual_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:  # at its start, 0, it would pass A no gradient
            parameter.data = torch.randn_like(parameter) * 0.02
    ids = torch.tensor(ROWS)
    tuned(ids, labels=ids).loss.backward()
    return {n: p.grad for n, p in tuned.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("scheme", "changes"),
    [
        *((s, {}) for s in ("symmetric", "asymmetric", "dynamic_w8a8", "static_w8a8")),
        *(
            (s, {"rounding": rounding, "granularity": "group", "group_size": 32})
            for s in ("symmetric", "asymmetric")
            for rounding in ("awq", "gptq")
        ),
    ],
)
def test_lora_trains_as_on_the_dequantised_weights(scheme, changes, tiny_base, tmp_path):
    chosen, qparams = options(scheme, **changes), None
    if scheme == "static_w8a8":
        qparams = calibrate(tiny_base, tmp_path, ROWS, chosen)
    with layer_inputs(tiny_base, tmp_path, ROWS, chosen) if changes else nullcontext() as inputs:
        quantize_checkpoint(tiny_base, tmp_path, chosen, qparams, inputs)
    loaded = load_model(tmp_path, torch.float32)
    assert loaded.hf_quantizer.is_trainable
    restored = dict(dequantized(tmp_path))
    twin = load_model(tiny_base, torch.float32)
    twin.load_state_dict(restored | {"lm_head.weight": restored["model.embed_tokens.weight"]})
    got, expected = lora_gradients(loaded), lora_gradients(twin)
    assert got.keys() == expected.keys()
    bound = 0.1 if "w8a8" in scheme else 1e-5
    for name, gradient in got.items():
        assert (gradient - expected[name]).norm() / expected[name].norm() < bound, name


def test_weights_compute_in_the_models_dtype(tiny_base, tmp_path):
    quantize_checkpoint(tiny_base, tmp_path, options("symmetric"))
    exact, rounded = (load_model(tmp_path, dtype) for dtype in (torch.float32, torch.bfloat16))
    one, other = (model.model.layers[0].mlp.up_proj.weight for model in (exact, rounded))
    assert torch.equal(one.scale, other.scale)
    assert other.dequantize().dtype == torch.bfloat16
    assert rounded(torch.tensor(ROWS)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_input_scales_are_exact_in_the_models_dtype(scheme, tiny_base, tmp_path):
    chosen = options(scheme, rounding="awq", granularity="group", group_size=32)
    with layer_inputs(tiny_base, tmp_path, ROWS, chosen) as inputs:
        quantize_checkpoint(tiny_base, tmp_path, chosen, inputs=inputs)
    exact, rounded = (load_model(tmp_path, dtype) for dtype in (torch.float32, torch.bfloat16))
    one, other = (model.model.layers[0].mlp.up_proj.weight for model in (exact, rounded))
    assert one.act_pre_scale.unique().numel() > 1
    assert torch.equal(one.act_pre_scale, other.act_pre_scale.float())
    ids = torch.tensor(ROWS)
    assert rounded(ids).logits.dtype == torch.bfloat16
    restored = dict(dequantized(tmp_path))
    twin = load_model(tiny_base, torch.float32)
    twin.load_state_dict(restored | {"lm_head.weight": restored["model.embed_tokens.weight"]})
    with torch.inference_mode():
        torch.testing.assert_close(exact(ids).logits, twin(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", ["dynamic_w8a8", "static_w8a8"])
def test_the_layer_computes_what_torchaos_integer_product_does(scheme, tiny_base, tmp_path):
    chosen, qparams = options(scheme), None
    if scheme == "static_w8a8":
        qparams = calibrate(tiny_base, tmp_path, ROWS, chosen)
    quantize_checkpoint(tiny_base, tmp_path, chosen, qparams)
    layer = load_model(tmp_path, torch.float32).model.layers[0].mlp.up_proj
    inputs = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0)) * 0.5
    expected = torch.nn.functional.linear(inputs, layer.weight)
    assert torch.allclose(layer(inputs), expected, atol=1e-5)


@pytest.mark.parametrize("granularity", [PerRow(), PerTensor()])
def test_the_options_round_the_inputs_of_an_integer_layer(granularity):
    weight, inputs = torch.eye(16), torch.randn(1, 3, 16)
    rounded = Int8Tensor.from_hp(
        weight, PerRow(), act_quant_kwargs=activation_options(granularity, MappingType.SYMMETRIC)
    )
    peak = inputs.abs().amax(-1, keepdim=True) if granularity == PerRow() else inputs.abs().max()
    expected = (inputs / (peak / 127.5)).round().clamp(-128, 127) * (peak / 127.5)
    got = torch.nn.functional.linear(inputs, rounded)
    assert not torch.equal(got, inputs)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=0.01 * float(peak.max()))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_layers_of_rounded_activations_compute_in_the_models_dtype(
    granularity, tiny_base, tmp_path
):
    chosen = options("static_w8a8", activation_granularity=granularity, activation_zero_point=False)
    quantize_checkpoint(tiny_base, tmp_path, chosen, calibrate(tiny_base, tmp_path, ROWS, chosen))
    logits = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = load_model(tmp_path, dtype)
        with torch.inference_mode():
            logits[dtype] = model(torch.tensor(ROWS)).logits
        assert logits[dtype].dtype == dtype
        assert all(gradient.isfinite().all() for gradient in lora_gradients(model).values())
    error = (logits[torch.bfloat16].float() - logits[torch.float32]).norm()
    assert error / logits[torch.float32].norm() < 0.05
