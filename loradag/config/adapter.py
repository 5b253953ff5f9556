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
    """The adapter: its variant, its rank and the layers that it adapts."""

    variant: str = one_of("none", "lora", "rslora", "dora", "pissa", "loftq", "quantized_lora")
    r: int | None = between(1, 4096)
    alpha: float | None = above(0)  # scale is alpha/r (rslora: alpha/sqrt(r))
    dropout: float | None = fraction()
    bias: str | None = one_of("none", "all", "lora_only")
    target_modules: Any = module_names(pattern=True)  # "all-linear": all but the output
    modules_to_save: list[str] | None = module_names(
        pattern=False
    )  # trained in full, with the adapter
    bits: int | None = between(2, 8)  # quantized_lora
    start: str | None = MISSING  # folder of an adapter to continue; null: a new one
