import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit

from loradag.compat.bitsandbytes import compute_in


@pytest.fixture
def layer():
    """A layer quantised from float16, as a checkpoint of 16 bits gives it."""
    torch.manual_seed(0)
    linear = Linear4bit(64, 64, bias=False, quant_type="nf4")
    linear.weight = Params4bit(
        torch.randn(64, 64, dtype=torch.float16), requires_grad=False, quant_type="nf4"
    )
    return linear.to("cpu").eval()


def test_the_attributes_that_are_set_exist(layer):
    for name in ("compute_dtype", "compute_type_is_set", "support_avx512bf16_for_cpu"):
        assert hasattr(layer, name), f"bitsandbytes' Linear4bit has no {name} any more"
    assert hasattr(layer.weight.quant_state, "dtype")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_evaluation_keeps_codes_and_scales_and_computes_in_the_dtype(layer, dtype):
    from bitsandbytes.functional import dequantize_4bit

    compute_in(layer, dtype)
    codes, scales = layer.weight.data.clone(), layer.weight.quant_state.absmax.clone()
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    assert weight.dtype == dtype
    inputs = torch.randn(3, 5, 64).to(dtype)
    with torch.inference_mode():
        outputs = layer(inputs)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs, torch.nn.functional.linear(inputs, weight))
    assert torch.equal(layer.weight.data, codes)
    assert torch.equal(layer.weight.quant_state.absmax, scales)
