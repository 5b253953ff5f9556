"""The rounding itself, against numpy."""

import numpy as np
import pytest
import torch

from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer, fake_quantized, round_weight


def by_hand(weight: np.ndarray, bits: int, size: int) -> np.ndarray:
    groups = weight.reshape(weight.shape[0], -1, size)
    scale = np.abs(groups).max(-1, keepdims=True) / np.float32(2 ** (bits - 1) - 1)
    return (np.round(groups / scale) * scale).reshape(weight.shape)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [8, 32, None])
def test_it_rounds_as_the_formula_says(bits: int, size: int | None) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(bits))
    rounded = AbsmaxFakeQuantizer(bits, size)(weight)
    np.testing.assert_allclose(rounded, by_hand(weight.numpy(), bits, size or 32), atol=1e-6)
    # At most half a step off, and of at most 2^b - 1 values a group.
    groups = rounded.reshape(6, -1, size or 32)
    step = weight.reshape(groups.shape).abs().amax(-1) / (2 ** (bits - 1) - 1)
    off = (groups - weight.reshape(groups.shape)).abs().amax(-1)
    assert (off <= step / 2 + 1e-6).all()
    assert all(len(group.unique()) <= 2**bits - 1 for group in groups.flatten(0, 1))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounding_twice_is_rounding_once(bits: int) -> None:
    quantizer = AbsmaxFakeQuantizer(bits, 16)
    once = quantizer(torch.randn(8, 64))
    torch.testing.assert_close(quantizer(once), once, rtol=1e-6, atol=0)


def test_the_gradient_goes_straight_through_for_every_weight() -> None:
    """Also for the largest of a group, which a range that clips it would cut off."""
    weight = torch.randn(4, 32, requires_grad=True)
    upstream = torch.randn(4, 32)
    AbsmaxFakeQuantizer(3, 16)(weight).backward(upstream)
    torch.testing.assert_close(weight.grad, upstream)


def test_zeros_stay_zeros() -> None:
    assert (AbsmaxFakeQuantizer(4)(torch.zeros(3, 8)) == 0).all()


def test_a_rounded_layer_computes_what_it_computed_before() -> None:
    linear = torch.nn.Linear(32, 8)
    quantized = fake_quantized(linear, 4, 16)
    assert quantized.weight is linear.weight  # the masters are the layer's own
    inputs = torch.randn(5, 32)
    before = quantized(inputs)
    after = round_weight(quantized).to_linear()(inputs)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_activations_are_rounded_to_256_values_a_token() -> None:
    linear = torch.nn.Linear(1024, 1024, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(1024))
    quantized = fake_quantized(linear, 8, activation_bits=8)
    inputs = torch.randn(1, 3, 1024)
    outputs = quantized(inputs)
    step = (inputs.amax(-1) - inputs.amin(-1)) / 255
    assert ((outputs - inputs).abs().amax(-1) <= step * 0.51).all()
    assert all(128 < len(token.unique()) <= 256 for token in outputs[0])
