"""The section `export`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loradag.config.rules import (
    above,
    at_least,
    file_size,
    one_of,
    repository,
    some_of,
)

GGUF_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "tq1_0", "tq2_0", "q6_k",
    "q5_k_m", "q4_k_m", "q3_k_m", "iq4_xs",
)  # fmt: skip
# Several of GGML's types in a file, rounded by the importance of each column.
MIXED_TYPES = {"q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "iq4_xs"}


@dataclass
class Export:
    """The files that runtimes load."""

    formats: Any = some_of("safetensors", "gguf", "adapter", "gguf_adapter", "compressed")
    type: Any = some_of(*GGUF_TYPES)  # gguf: one, or a list of several
    compressed: str = one_of("w8a8", "w4a16", "fp8")  # of the format of that name
    max_shard_size: str = file_size()  # safetensors, compressed
    rows: int = at_least(1)  # held-out rows that the runtimes are measured on
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    # Relative change of perplexity beyond the format's own loss; float types: 0.001 at most.
    tolerance: float = above(0)
    # Rows that the importance of columns is measured on, at most; for q6_k, q5_k_m and their like.
    calibration_rows: int = at_least(1)
    register: str | None = MISSING  # MLflow model name
    push: str | None = repository()  # of a model hub, org/name; made private


def listed(options: str | list[str]) -> list[str]:
    """One option or several, each once."""
    return [options] if isinstance(options, str) else list(dict.fromkeys(options))


def is_mixed(export: Export) -> bool:
    """Whether a file is written whose rounding needs calibration rows."""
    return "gguf" in listed(export.formats) and bool(MIXED_TYPES & set(listed(export.type)))
