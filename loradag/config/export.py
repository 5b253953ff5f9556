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
# File types that mix several GGML types, and round by the importance of each column.
MIXED_TYPES = {"q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "iq4_xs"}


@dataclass
class Export:
    """The files that are written for runtimes, and how they are verified."""

    formats: Any = some_of("safetensors", "gguf", "adapter", "gguf_adapter", "compressed")
    type: Any = some_of(*GGUF_TYPES)  # gguf: a type, or a list of types
    compressed: str = one_of("w8a8", "w4a16", "fp8")  # how the format compressed stores weights
    max_shard_size: str = file_size()  # safetensors, compressed
    rows: int = at_least(1)  # held-out rows that the runtimes are measured on
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    # Relative change of perplexity beyond the format's own rounding; float types: at most 0.001.
    tolerance: float = above(0)
    # At most this many rows measure the importance of columns, for q6_k, q5_k_m and the like.
    calibration_rows: int = at_least(1)
    register: str | None = MISSING  # MLflow model name
    push: str | None = repository()  # hub repository, org/name; created private


def listed(options: str | list[str]) -> list[str]:
    """The options as a list without repeats."""
    return [options] if isinstance(options, str) else list(dict.fromkeys(options))


def is_mixed(export: Export) -> bool:
    """Whether a GGUF file type is exported whose rounding needs calibration rows."""
    return "gguf" in listed(export.formats) and bool(MIXED_TYPES & set(listed(export.type)))
