"""Weights rounded to few bits in the forward pass, while full-precision masters train.

The forward pass computes with the weights rounded by absmax (`loradag.quantization.absmax`), and
the gradient passes straight through the rounding, dL/dw = dL/dŵ (https://arxiv.org/abs/1308.3432).
torchao's own symmetric fake quantiser spreads the range over 2^b codes instead, which clips the
largest positive weight of a block, and clipped weights get no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization import dequantize_affine, quantize_affine

from loradag.models.activations import rounding_inputs
from loradag.quantization.absmax import choose_absmax_qparams, largest_code


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, weight: torch.Tensor, block: tuple[int, int], bits: int) -> torch.Tensor:
        scale, zero_point = choose_absmax_qparams(weight, block, bits)
        codes = (-largest_code(bits), largest_code(bits))
        quantized = quantize_affine(weight, block, scale, zero_point, torch.int8, *codes)
        rounded: torch.Tensor = dequantize_affine(
            quantized, block, scale, zero_point, torch.int8, *codes, output_dtype=weight.dtype
        )
        return rounded

    @staticmethod
    def backward(_: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient, None, None


class AbsmaxFakeQuantizer(torch.nn.Module):
    """Rounds a weight (out, in) to `bits`, with a scale for `group_size` weights of a row.

    Without a group size a scale is for a full row.
    """

    def __init__(self, bits: int, group_size: int | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.group_size = group_size

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        block = (1, self.group_size or weight.shape[-1])
        rounded: torch.Tensor = _StraightThrough.apply(weight, block, self.bits)
        return rounded


def fake_quantized(
    linear: Any, bits: int, group_size: int | None = None, *, activation_bits: int | None = None
) -> Any:
    """torchao's `FakeQuantizedLinear` on the parameters of `linear`, with absmax weights."""
    quantized = rounding_inputs(linear, activation_bits)
    quantized.weight_fake_quantizer = AbsmaxFakeQuantizer(bits, group_size)
    return quantized


@torch.no_grad()
def round_weight(quantized: Any) -> Any:
    """`quantized` with its masters replaced by the rounded weights that it computes with."""
    quantized.weight.copy_(quantized.weight_fake_quantizer(quantized.weight))
    return quantized
