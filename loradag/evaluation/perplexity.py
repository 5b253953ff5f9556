"""Perplexity over sliding windows, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loradag.config.problems import LoradagError
from loradag.models.placement import input_device

if TYPE_CHECKING:
    import torch

# Logits held at once: of a large vocabulary they outgrow the model itself.
LOGIT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Score:
    """Negative log-likelihood, summed over the tokens that it was taken of.

    Attributes:
        nll_sum: in nats.
        tokens: scored tokens.
    """

    nll_sum: float
    tokens: int

    @property
    def nll(self) -> float:
        """Nats a token."""
        return self.nll_sum / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(sum of NLL / tokens): over tokens, never a mean over batches; inf past any float."""
        try:
            return math.exp(self.nll)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads: views of a row's ids and mask, which may be mapped from a file.

    Attributes:
        ids: (tokens,).
        mask: (tokens,), 1 where a token counts.
        first: the first token that is scored here; those before it are its context.
    """

    ids: np.ndarray[Any, Any]
    mask: np.ndarray[Any, Any]
    first: int

    @property
    def scored(self) -> np.ndarray[Any, Any]:
        """1 where a token is scored (tokens,)."""
        scored = self.mask.astype(np.int64)
        scored[: self.first] = 0
        return scored


def windows(ids: Any, mask: Any, window: int, stride: int) -> Iterator[Window]:
    """Cut a row so that every token but the first is scored once, with the most context.

    Each window after the first scores its last `stride` tokens; those before are its context, at
    least `window - stride` tokens (https://huggingface.co/docs/transformers/perplexity).

    Args:
        ids: (tokens,).
        mask: (tokens,), 1 where a token counts.
    """
    ids, mask = np.asarray(ids), np.asarray(mask)
    done = 1  # nothing predicts the first token
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        first = max(begin, done)
        if mask[first:end].any():
            yield Window(ids[begin:end], mask[begin:end], first - begin)
        done = max(done, end)
        if end == len(ids):
            return


def score(
    model: Any,
    rows: Sequence[Any],
    masks: Sequence[Any] | None,
    *,
    window: int,
    stride: int,
    batch_tokens: int,
    progress: bool = True,
) -> Score:
    """The NLL of `rows` under `model`; each row starts with an empty context.

    Args:
        rows: token ids, a list or an array a row.
        masks: 1 where a token counts, likewise; None: all do.
        window: tokens that the model reads at once, at most.
        stride: tokens that a window moves on by.
        batch_tokens: tokens a forward pass, padding included.
        progress: show a bar.

    Raises:
        LoradagError: there is no token to score.
    """
    import torch
    from tqdm import tqdm

    if masks is None:
        masks = [np.broadcast_to(np.int8(1), len(row)) for row in rows]
    check_scored(masks)
    cut = [
        piece
        for row, mask in zip(rows, masks, strict=True)
        for piece in windows(row, mask, window, stride)
    ]
    cut.sort(key=lambda w: len(w.ids))
    nll_sum, tokens = 0.0, 0
    with (
        torch.inference_mode(),
        tqdm(total=len(cut), unit="windows", desc="perplexity", disable=not progress) as bar,
    ):
        for batch in _batches(cut, batch_tokens):
            longest = len(batch[-1].ids)
            ids, scored = (
                torch.from_numpy(np.stack([np.pad(one, (0, longest - len(one))) for one in part]))
                for part in ([w.ids.astype(np.int64) for w in batch], [w.scored for w in batch])
            )
            nll = token_nll(model, ids.to(input_device(model))).cpu()
            nll_sum += float((nll.double() * scored[:, 1:]).sum())
            tokens += int(scored[:, 1:].sum())
            bar.update(len(batch))
    return Score(nll_sum, tokens)


def check_scored(masks: Iterable[Any]) -> None:
    """Refuse rows whose `masks` leave no token to score: nothing predicts a row's first one.

    Raises:
        LoradagError: there is no such token.
    """
    if not any(np.asarray(mask)[1:].any() for mask in masks):
        raise LoradagError(
            "no token of the held-out rows is scored: each row is one token, or has no other one "
            "that the loss is taken of. Raise prepare.max_tokens, which may cut off every "
            "completion, or set the loss (train.loss, evaluate.loss) to full."
        )


def token_nll(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """NLL of each token after the first, in nats: (batch, time) to (batch, time - 1).

    Rows may be padded on the right: a causal model's earlier tokens do not see it. A long row is
    read in parts over the key-value cache, so that its logits are never all there at once.
    """
    import torch

    batch, length = ids.shape
    vocabulary = model.get_input_embeddings().weight.shape[0]
    part = max(1, LOGIT_BYTES // (4 * vocabulary * batch))
    cache, parts = None, []
    for begin in range(0, length - 1, part):
        end = min(begin + part, length - 1)
        output = model(ids[:, begin:end], past_key_values=cache, use_cache=end < length - 1)
        cache = output.past_key_values
        logits = output.logits.float().flatten(0, 1)
        targets = ids[:, begin + 1 : end + 1].flatten()
        nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        parts.append(nll.view(batch, -1))
    return torch.cat(parts, dim=1)


def _batches(cut: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows sorted by length, in batches of at most `batch_tokens` (one window at least)."""
    batch: list[Window] = []
    for window in cut:
        if batch and (len(batch) + 1) * len(window.ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
