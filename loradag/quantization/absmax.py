"""Symmetric quantisation by the largest absolute value, the formula behind several schemes.

With b bits, for each block of weights that shares a scale,

    s = max|w| / (2^(b−1) − 1),    q = round(w / s) in ±(2^(b−1) − 1),    ŵ = s·q.

Nothing is clipped, and the largest weight is represented exactly, so rounding twice is rounding
once. [Jacob et al., arXiv:1712.05877, with the symmetric range of torchao]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def largest_code(bits: int) -> int:
    """The largest code of `bits`; the smallest is its negative."""
    return int(2 ** (bits - 1)) - 1


def choose_absmax_qparams(
    weight: torch.Tensor, block: tuple[int, int], bits: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales (float32) and zero points (int8, all 0) of shape (out / block[0], in / block[1]).

    Args:
        weight: (out, in), of a float dtype.
        block: (rows, columns) of the weights that share a scale.
        bits: of a code.
    """
    import torch
    from torchao.quantization import MappingType, choose_qparams_affine

    largest = largest_code(bits)
    scales, zero_points = choose_qparams_affine(
        weight,
        MappingType.SYMMETRIC,
        block,
        torch.int8,
        -largest,
        largest,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int8,
        keepdim=True,
    )
    return scales, zero_points
