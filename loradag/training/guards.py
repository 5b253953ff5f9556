"""What stops a training that could only waste its hours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from loradag.config.problems import LoradagError

IGNORED = -100  # the label that no loss is taken of


def check_labels(labels: Iterable[Any], loss: str, eos_token_id: int) -> None:
    """Refuse labels, arrays of whatever length, that train nothing or never train EOS.

    Raises:
        LoradagError: no token is trained, or EOS is trained in no row.
    """
    import numpy as np

    is_trained = stops = False
    for part in labels:
        array = np.asarray(part)
        is_trained |= bool((array != IGNORED).any())
        stops |= bool((array == eos_token_id).any())
        if is_trained and stops:
            return
    if not is_trained:
        raise LoradagError(
            f"train.loss = {loss!r}: no token is trained, for no row has one of the assistant's. "
            "Set train.loss=full, or correct prepare.completion."
        )
    if not stops:
        raise LoradagError(
            "EOS is trained in no row, so the model would never learn to stop. Raise "
            "prepare.max_tokens: every row is truncated."
        )


def check_optimizer(optimizer: str, device: str) -> None:
    """Refuse an optimizer that bitsandbytes does not have for `device`.

    Raises:
        LoradagError: a paged optimizer on a Mac's GPU, which has no paged memory.
    """
    if device == "mps" and optimizer.startswith("paged_"):
        raise LoradagError(
            f"train.optimizer = {optimizer!r}: bitsandbytes has no paged optimizer for MPS. Set "
            "train.optimizer=adamw_torch, or runtime.device=cpu."
        )


def check_attention(attention: str, device: str) -> None:
    """Refuse an attention implementation that computes no gradient on `device`.

    Raises:
        LoradagError: flex_attention on a CPU.
    """
    if attention == "flex_attention" and device == "cpu":
        raise LoradagError(
            f"train.attention = {attention!r}: torch has no backward pass of it on a CPU. Set "
            "train.attention=auto."
        )


class Guards(TrainerCallback):
    """Stops a training that diverges, that learns nothing, or whose model is beyond any use.

    Created before the first step: it compares the trained parameters with those of its creation.

    Raises:
        LoradagError: with the step, what was measured, and what to try.
    """

    def __init__(self, model: Any, limits_held_out: bool = True) -> None:
        """Take the start of the parameters.

        Args:
            limits_held_out: refuse a model whose held-out perplexity is beyond any use. Not where a
                few rows are overfitted on purpose.
        """
        self.start = _fingerprints(model)
        self.limits_held_out = limits_held_out

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss, norm = (logs or {}).get("loss"), (logs or {}).get("grad_norm")
        if loss is not None and not math.isfinite(loss):
            raise LoradagError(
                f"the loss is {loss} at step {state.global_step}. Lower train.learning_rate, "
                "lengthen train.warmup_steps, or set train.dtype=float32."
            )
        if norm == 0:
            cause = (
                "The loss does not depend on what is trainable: check adapter.target_modules."
                if state.global_step == 1
                else f"The model is saturated: lower train.learning_rate = {args.learning_rate:g}."
            )
            raise LoradagError(
                f"the gradient is 0 at step {state.global_step}, so nothing is trained. {cause}"
            )

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], model: Any, **_: Any
    ) -> None:
        """Refuse a model that predicts held-out tokens far worse than a uniform guess.

        A uniform guess over V tokens has perplexity V. Random weights are near it, so the bound is
        twice that.
        """
        vocabulary = model.get_input_embeddings().weight.shape[0]
        loss = metrics["eval_loss"]
        if self.limits_held_out and not loss <= math.log(2 * vocabulary):  # NaN too
            perplexity = math.exp(loss) if loss < 700 else math.inf
            raise LoradagError(
                f"the held-out perplexity is {perplexity:.4g} at step {state.global_step}. A guess "
                f"among the {vocabulary} tokens of the vocabulary has {vocabulary}: the model is "
                f"beyond any use. Lower train.learning_rate = {args.learning_rate:g}."
            )

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        if _fingerprints(model) == self.start:
            raise LoradagError(
                f"after {state.global_step} steps nothing that was trained has changed. Raise "
                f"train.learning_rate = {args.learning_rate:g}, or lower train.warmup_steps = "
                f"{args.warmup_steps:g}: the first step's rate is 0 where there is a warm-up."
            )


def _fingerprints(model: Any) -> list[int]:
    """A hash of each trainable parameter: a copy would need their memory again.

    Where the processes divide the model, each gathers one parameter after the other.
    """
    trained = (p.detach() for p in model.parameters() if p.requires_grad)
    full = (p.full_tensor() if isinstance(p, DTensor) else p for p in trained)
    return [int(torch.hash_tensor(parameter).view(torch.int64)) for parameter in full]
