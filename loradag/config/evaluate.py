"""The section `evaluate`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from loradag.config.dtypes import DTYPES
from loradag.config.rules import (
    at_least,
    format_string,
    one_of,
)


@dataclass
class General:
    """Text outside the tuning data, on which `evaluate` measures what the tuning cost."""

    source: str = one_of("none", "glosses", "quotes", "hub", "file")
    id: str | None = MISSING  # hub data set
    config: str | None = MISSING
    revision: str | None = MISSING  # a commit, since nothing else pins the data set
    split: str | None = MISSING
    path: str | None = MISSING  # file
    text: str | None = format_string()  # with the row's fields; null: the default of the source
    rows: int = at_least(1)


@dataclass
class Evaluate:
    """How the models are measured: perplexity, greedy samples, tasks."""

    window: int = at_least(2)  # tokens
    stride: int = at_least(1)  # tokens
    batch_tokens: int = at_least(1)  # tokens per forward pass, padding included
    loss: str = one_of("full", "completion", "assistant")  # full: on every token
    samples: int = at_least(0)  # prompts
    max_new_tokens: int = at_least(1)
    general: General = field(default_factory=General)
    tasks: list[str] = MISSING  # of lm-evaluation-harness
    tasks_path: str | None = MISSING  # a folder with the YAML files of your own tasks
    tasks_limit: int | None = at_least(1)  # documents per task
    dtype: str = one_of(*DTYPES)
