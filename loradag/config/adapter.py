"""The section `adapter`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loradag.config.rules import (
    above,
    between,
    fraction,
    one_of,
)


@dataclass
class Adapter:
    """The trained update: its form, rank and place."""

    variant: str = one_of("none", "lora", "rslora", "dora", "pissa", "loftq", "quantized_lora")
    r: int | None = between(1, 4096)
    alpha: float | None = above(0)  # scale is alpha/r (rslora: alpha/sqrt(r))
    dropout: float | None = fraction()
    bias: str | None = one_of("none", "all", "lora_only")
    target_modules: Any = MISSING  # "all-linear", or a list of module names
    modules_to_save: list[str] | None = MISSING  # trained whole beside the adapter
    bits: int | None = between(2, 8)  # quantized_lora
