"""The section `merge`."""

from dataclasses import dataclass, field

from loradag.config.dtypes import DTYPES
from loradag.config.rules import (
    above,
    at_least,
    one_of,
)


@dataclass
class Tolerance:
    """The limits past which the merge fails; KL is the mean over tokens, in nats."""

    rounding: float = above(0)  # KL from the same base with the unmerged adapter
    kl: float = above(0)  # KL from the model as trained, on its quantized base
    perplexity: float = above(0)  # relative rise over that of the model as trained


@dataclass
class Merge:
    """How the adapter is merged into its base, and how that is verified."""

    base: str = one_of("original", "dequantized")
    dtype: str = one_of(*DTYPES)  # of the merged weights; auto: the base's
    rows: int = at_least(1)  # held-out rows on which both models are compared
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    tolerance: Tolerance = field(default_factory=Tolerance)
