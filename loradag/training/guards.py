"""What stops a training that could only waste its hours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

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


class FiniteLoss(TrainerCallback):
    """Stops a training whose loss is NaN or infinite, with what to try."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        loss = (logs or {}).get("loss")
        if loss is not None and not math.isfinite(loss):
            raise LoradagError(
                f"the loss is {loss} at step {state.global_step}. Lower train.learning_rate, "
                "lengthen train.warmup_steps, or set train.dtype=float32."
            )
