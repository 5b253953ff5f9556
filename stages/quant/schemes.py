"""Each scheme as two functions: what `config.json` says, and a weight to its saved tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from conf.schema import BNB_SCHEMES
from stages.quant import bnb

if TYPE_CHECKING:
    import torch

    from conf.schema import Quantize


def config(quantize: Quantize, skipped: list[str]) -> Any:
    """What transformers loads the checkpoint by; `skipped` are the modules left as they are."""
    return bnb.config(quantize, skipped)


def encode(name: str, weight: torch.Tensor, quantize: Quantize) -> dict[str, torch.Tensor]:
    """The tensors that stand for the linear weight `name` (out, in) in the saved checkpoint."""
    assert quantize.scheme in BNB_SCHEMES
    return bnb.encode(name, weight, quantize)
