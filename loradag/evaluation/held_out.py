"""Every model of a run, measured on the same held-out rows in the same way."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from loradag.config.evaluate import Evaluate
from loradag.data.rows import Rows
from loradag.evaluation.perplexity import score
from loradag.evaluation.samples import Sample, sample_greedily
from loradag.runtime.report_keys import HeldOutLoss


class HeldOut:
    """The held-out rows, and how they are measured."""

    def __init__(self, tokenizer: Any, rows: Rows, evaluate: Evaluate) -> None:
        self.tokenizer = tokenizer
        self.rows = rows
        self.evaluate = evaluate
        self.prompts = [row.prompt for row in rows[: evaluate.samples]]

    def measure(self, model: Any) -> HeldOutLoss:
        """Perplexity, NLL (nats a token), bits a UTF-8 byte, and the tokens scored.

        Where these are EOS alone, there is no byte to give the bits of.
        """
        loss = self.evaluate.loss
        columns = ["input_ids", "token_bytes", *([f"{loss}_mask"] if loss != "full" else [])]
        with tempfile.TemporaryDirectory() as folder:
            ids, sizes, *found = self.rows.map_columns(Path(folder) / "rows.arrow", *columns)
            masks = found[0] if found else [np.broadcast_to(np.int8(1), len(row)) for row in ids]
            scored = score(
                model,
                ids,
                masks,
                window=self.evaluate.window,
                stride=self.evaluate.stride,
                batch_tokens=self.evaluate.batch_tokens,
            )
            utf8_bytes = sum(  # of the tokens that are scored: nothing predicts the first
                int(size[1:] @ mask[1:].astype(np.int64))
                for size, mask in zip(sizes, masks, strict=True)
            )
        bits = scored.nll_sum / math.log(2)
        return {
            "perplexity": scored.perplexity,
            "nll": scored.nll,
            "bits_per_byte": bits / utf8_bytes if utf8_bytes else None,
            "tokens": scored.tokens,
        }

    def sample(self, model: Any) -> list[Sample]:
        """Greedy continuations of the first rows' prompts."""
        limits = (self.evaluate.max_new_tokens, self.evaluate.batch_tokens)
        return sample_greedily(model, self.tokenizer, self.prompts, *limits)
