"""What every exported format is measured on, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Inputs:
    """What a runtime is given.

    Attributes:
        texts: to tokenize, with the special tokens that the runtime adds by itself.
        dialogue: for the chat template; None: the model has none.
        rows: token ids whose next-token distributions are compared, each row with an empty context.
        prompts: token ids that greedy text continues.
        max_new_tokens: of each greedy text.
    """

    texts: list[str]
    dialogue: list[dict[str, str]] | None
    rows: list[list[int]]
    prompts: list[list[int]]
    max_new_tokens: int


@dataclass(frozen=True)
class Measurement:
    """What a runtime computes from `Inputs`.

    Attributes:
        logits: folder of a file a row, (tokens, vocabulary) in float32.
        opening: the dialogue as its chat template renders it.
        opening_ids: the ids of that text.
        tokens_per_second: of greedy text.
    """

    runtime: str
    logits: Path
    token_ids: list[list[int]]
    opening: str | None
    opening_ids: list[int] | None
    greedy: list[list[int]]
    tokens_per_second: float
