"""The section `evaluate`."""

from dataclasses import dataclass

from omegaconf import MISSING

from loradag.config.dtypes import DTYPES
from loradag.config.rules import (
    at_least,
    one_of,
)


@dataclass
class Evaluate:
    """Perplexity over held-out tokens, and greedy samples."""

    window: int = at_least(2)  # tokens
    stride: int = at_least(1)  # tokens
    batch_tokens: int = at_least(1)  # tokens a forward pass, padding included
    loss: str = one_of("full", "completion")
    samples: int = at_least(0)  # prompts
    max_new_tokens: int = at_least(1)
    tasks: list[str] = MISSING  # of lm-evaluation-harness
    tasks_path: str | None = MISSING  # a folder with the YAML files of your own tasks
    tasks_limit: int | None = at_least(1)  # documents a task
    dtype: str = one_of(*DTYPES)
