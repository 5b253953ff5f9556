"""The picture of a quantised layer: how its weights lie among the levels they are rounded to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loradag.runtime.report_keys import WeightHistogram

if TYPE_CHECKING:
    import torch

BINS = 160


@dataclass(frozen=True)
class Histogram:
    """Counts of a layer's weights by bin, and the levels of its first block.

    Attributes:
        layer: its name.
        edges: of the bins, one more than counts.
        counts: weights in each bin.
        levels: the values that weights of the first block can be rounded to. Blocks have scales
            of their own, so the levels of all together would be a blur.
    """

    layer: str
    edges: list[float]
    counts: list[int]
    levels: list[float]

    @classmethod
    def of(cls, layer: str, weight: torch.Tensor, levels: torch.Tensor) -> Histogram:
        import torch

        values = weight.float().cpu().flatten()
        reach = values.abs().max().item() or 1.0
        counts, edges = torch.histogram(values, BINS, range=(-reach, reach))
        return cls(layer, edges.tolist(), [int(count) for count in counts], levels.cpu().tolist())

    def as_dict(self) -> WeightHistogram:
        return {
            "layer": self.layer,
            "edges": self.edges,
            "counts": self.counts,
            "levels": self.levels,
        }
