"""What every exported format is put to, and what it was found to do."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

QUESTION = "What is the capital of France?"


@dataclass(frozen=True)
class Trial:
    """Questions to a runtime.

    Attributes:
        texts: to tokenize, with the special tokens that the runtime adds by itself.
        dialogue: for the chat template; None: the model has none.
        rows: token ids whose NLL is summed, each row with an empty context.
        prompts: token ids that greedy text goes on from.
        max_new_tokens: of each greedy text.
        threads: for the runtime.
    """

    texts: list[str]
    dialogue: list[dict[str, str]] | None
    rows: list[list[int]]
    prompts: list[list[int]]
    max_new_tokens: int
    threads: int


@dataclass(frozen=True)
class Finding:
    """A runtime's answers to a `Trial`."""

    runtime: str
    token_ids: list[list[int]]
    opening: str | None
    nll_sum: float  # nats
    tokens: int
    greedy: list[list[int]]
    tokens_per_second: float  # of greedy text

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll_sum / self.tokens)


def find_in_transformers(model: Any, tokenizer: Any, trial: Trial, runtime: str) -> Finding:
    """Put a loaded transformers (or peft) model to the trial."""
    import time

    import torch

    from loradag.data.templates import chat_prompt, encode_prompt
    from loradag.evaluation.perplexity import token_nll
    from loradag.evaluation.samples import greedy_ids

    with torch.inference_mode():
        nll = [
            float(token_nll(model, torch.tensor([row], device=model.device)).double().sum())
            for row in trial.rows
        ]
    started = time.perf_counter()
    greedy = [greedy_ids(model, ids, trial.max_new_tokens) for ids in trial.prompts]
    seconds = time.perf_counter() - started
    return Finding(
        runtime=runtime,
        token_ids=[encode_prompt(text, tokenizer) for text in trial.texts],
        opening=chat_prompt(trial.dialogue, tokenizer) if trial.dialogue else None,
        nll_sum=sum(nll),
        tokens=sum(len(row) - 1 for row in trial.rows),
        greedy=greedy,
        tokens_per_second=sum(map(len, greedy)) / seconds,
    )
