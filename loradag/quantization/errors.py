"""The error of quantised weights against the original ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loradag.runtime.report_keys import WeightErrors

if TYPE_CHECKING:
    import torch

ROWS = 64  # compared at a time, so that float64 copies stay small


@dataclass(frozen=True)
class Error:
    """Sums over `count` weights: `signal` = Σ w², `noise` = Σ (w − ŵ)². Errors add up."""

    signal: float = 0.0
    noise: float = 0.0
    count: int = 0

    def __add__(self, other: Error) -> Error:
        return Error(self.signal + other.signal, self.noise + other.noise, self.count + other.count)

    @property
    def sqnr_db(self) -> float | None:
        """10·log10(Σ w² / Σ (w − ŵ)²), in dB; None without error, or without weights."""
        if self.noise == 0 or self.signal == 0:
            return None
        return 10 * math.log10(self.signal / self.noise)

    @property
    def rmse(self) -> float:
        """√(Σ (w − ŵ)² / n), in the unit of the weights."""
        return math.sqrt(self.noise / self.count) if self.count else 0.0

    def as_dict(self) -> WeightErrors:
        """The report's keys; `sqnr_db` is left out where it is infinite or undefined."""
        if self.sqnr_db is None:
            return {"rmse": self.rmse}
        return {"rmse": self.rmse, "sqnr_db": self.sqnr_db}


def compare(weight: torch.Tensor, restored: torch.Tensor) -> Error:
    """The error of `restored` against `weight`, both of the same shape, summed in float64."""
    total = Error(count=weight.numel())
    for exact, lossy in zip(weight.split(ROWS), restored.split(ROWS), strict=True):
        exact = exact.double()
        noise = (exact - lossy.double()).square().sum().item()
        total += Error(exact.square().sum().item(), noise)
    return total
