"""Every model of a run, measured on the same held-out rows in the same way."""

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

from loradag.config.evaluate import Evaluate
from loradag.data.rows import Row
from loradag.evaluation.perplexity import score
from loradag.evaluation.samples import Sample, sample_greedily
from loradag.runtime.report_keys import HeldOutLoss


class HeldOut:
    """The held-out rows, and how they are measured."""

    def __init__(self, tokenizer: Any, rows: Sequence[Row], evaluate: Evaluate) -> None:
        self.tokenizer = tokenizer
        self.rows = rows
        self.evaluate = evaluate
        self.prompts = [row.prompt for row in rows[: evaluate.samples]]

    def measure(self, model: Any) -> HeldOutLoss:
        """Perplexity, NLL (nats a token), bits a UTF-8 byte, and the tokens scored."""
        masks = self._masks()
        scored = score(
            model,
            [row.input_ids for row in self.rows],
            masks,
            window=self.evaluate.window,
            stride=self.evaluate.stride,
            batch_tokens=self.evaluate.batch_tokens,
        )
        utf8_bytes = sum(  # of the tokens that are scored: nothing predicts the first
            sum(compress(row.token_bytes[1:], mask[1:]))
            for row, mask in zip(self.rows, masks, strict=True)
        )
        return {
            "perplexity": scored.perplexity,
            "nll": scored.nll,
            "bits_per_byte": scored.nll_sum / math.log(2) / utf8_bytes,
            "tokens": scored.tokens,
        }

    def _masks(self) -> list[list[int]]:
        """1 where a token counts, by row."""
        if self.evaluate.loss == "completion":
            return [row.completion_mask for row in self.rows]
        if self.evaluate.loss == "assistant":
            return [row.assistant_mask for row in self.rows]
        return [[1] * len(row.input_ids) for row in self.rows]

    def sample(self, model: Any) -> list[Sample]:
        """Greedy continuations of the first rows' prompts."""
        return sample_greedily(model, self.tokenizer, self.prompts, self.evaluate.max_new_tokens)
