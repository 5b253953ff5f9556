"""Weights rounded to few bits in the forward pass, while full-precision masters train.

Symmetric absmax: with b bits, of each group of a row,

    s = max|w| / (2^(b-1) - 1),    q = round(w / s) in ±(2^(b-1) - 1),    w' = s q,

and the gradient goes straight through the rounding, dL/dw = dL/dw'
(https://arxiv.org/abs/1308.3432). Nothing is clipped: torchao's own symmetric fake quantiser
spreads the range over 2^b codes, which clips the largest positive weight of a group, and clipped
weights get no gradient. Here the largest weight is on the grid, so rounding twice is rounding once.
"""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization import MappingType, choose_qparams_affine
from torchao.quantization.quant_primitives import _fake_quantize_affine

from loradag.models.activations import rounding_inputs


class AbsmaxFakeQuantizer(torch.nn.Module):
    """Rounds a weight (out, in) to `bits`, with a scale for `group_size` weights of a row.

    Without a group size a scale is for a whole row.
    """

    def __init__(self, bits: int, group_size: int | None = None) -> None:
        super().__init__()
        self.largest = 2 ** (bits - 1) - 1
        self.group_size = group_size

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        block = (1, self.group_size or weight.shape[-1])
        codes = (torch.int8, -self.largest, self.largest)
        scale, zero = choose_qparams_affine(weight, MappingType.SYMMETRIC, block, *codes)
        rounded: torch.Tensor = _fake_quantize_affine(weight, block, scale, zero, *codes)
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
    """`quantized` with its masters replaced by what it computed with."""
    quantized.weight.copy_(quantized.weight_fake_quantizer(quantized.weight))
    return quantized
