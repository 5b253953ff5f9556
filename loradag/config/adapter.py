"""The section `adapter`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loradag.config.rules import (
    above,
    between,
    fraction,
    module_names,
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
    target_modules: Any = module_names(pattern=True)  # "all-linear": every matrix of the blocks
    modules_to_save: list[str] | None = module_names(pattern=False)  # trained in full, next to it
    bits: int | None = between(2, 8)  # quantized_lora
    start: str | None = MISSING  # folder of an adapter to continue; null: a fresh one
