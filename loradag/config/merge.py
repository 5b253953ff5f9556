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
    """Past it the merge fails. KL is a mean over tokens, in nats."""

    rounding: float = above(0)  # KL to the same base with the unmerged adapter
    kl: float = above(0)  # KL to the model as trained, on its quantised base
    perplexity: float = above(0)  # relative rise over the model as trained


@dataclass
class Merge:
    """Adapter into base."""

    base: str = one_of("original", "dequantized")
    dtype: str = one_of(*DTYPES)  # of the merged weights; auto: the base's
    rows: int = at_least(1)  # held-out rows that the parity is measured on
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    tolerance: Tolerance = field(default_factory=Tolerance)
