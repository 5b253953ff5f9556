"""GPTQ: columns of a weight are rounded in turn, and what is left makes up for the error.

Rounding changes the outputs W·x of a layer by (W − Ŵ)·x. The squares of that, summed over the
inputs of calibration rows, are tr((W − Ŵ)·H·(W − Ŵ)ᵀ) with H = Σ x·xᵀ. Once column k is rounded,
the columns j > k that minimise it are

    w_j − (w_k − ŵ_k) · U_kj / U_kk,    UᵀU = H⁻¹, U upper triangular

[Frantar et al., arXiv:2210.17323, algorithm 1]. Columns that meet the largest inputs come first,
while all others can still make up for their error: the order that the paper's code calls act-order.
To the diagonal of H a part of its mean is added, since there may be fewer tokens than columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Of the mean diagonal. The paper's 0.01 is for 262,144 tokens; calibration rows are few here.
DAMPING = 0.05
BLOCK = 128  # columns between two updates of all that follow


def compensate(
    weight: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    round_column: Callable[[torch.Tensor, int], torch.Tensor],
) -> torch.Tensor:
    """The rounded weight (out, in).

    Args:
        weight: (out, in), float32.
        inputs: (1, tokens, in) each, of the calibration rows.
        round_column: what the column (out,) of a number is rounded to.
    """
    import torch

    hessian = _hessian(inputs)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = _inverse_factor(hessian[order][:, order])
    columns = weight.T[order]  # (in, out): what is written at once is contiguous
    for begin in range(0, len(order), BLOCK):
        block = columns[begin : begin + BLOCK]
        end = begin + len(block)
        errors = torch.zeros_like(block)
        for k, column in enumerate(order[begin:end].tolist()):
            rounded = round_column(block[k], column)
            errors[k] = (block[k] - rounded) / factor[begin + k, begin + k]
            block[k] = rounded
            block[k + 1 :] -= torch.outer(factor[begin + k, begin + k + 1 : end], errors[k])
        columns[end:] -= factor[begin:end, end:].T @ errors
    return columns[order.argsort()].T.contiguous()


def _hessian(inputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """H, damped (in, in), float64."""
    import torch

    size = inputs[0].shape[-1]
    hessian = torch.zeros(size, size, dtype=torch.float64, device=inputs[0].device)
    for row in inputs:
        tokens = row.reshape(-1, size).float()
        hessian += tokens.T @ tokens
    damping = DAMPING * hessian.diagonal().mean()
    hessian.diagonal().add_(damping if damping > 0 else 1.0)
    return hessian


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """U of UᵀU = H⁻¹ (in, in), float32."""
    import torch

    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor
