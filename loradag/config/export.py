"""The section `export`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loradag.config.rules import (
    above,
    at_least,
    file_size,
    some_of,
)

GGUF_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "tq1_0", "tq2_0",
)  # fmt: skip


@dataclass
class Export:
    """The files that runtimes load."""

    formats: Any = some_of("safetensors", "gguf", "adapter")
    type: Any = some_of(*GGUF_TYPES)  # gguf: one, or a list of several
    max_shard_size: str = file_size()  # safetensors
    rows: int = at_least(1)  # held-out rows that the runtimes are measured on
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    # Relative change of perplexity beyond the format's own loss; float types: 0.001 at most.
    tolerance: float = above(0)
    register: str | None = MISSING  # MLflow model name
