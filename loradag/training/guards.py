"""What stops a training that could only waste its hours."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from loradag.config.problems import LoradagError

IGNORED = -100  # the label that no loss is taken of


def check_labels(labels: list[list[int]], eos_token_id: int) -> None:
    """Refuse labels that train nothing, or that never show the model how to stop.

    Raises:
        LoradagError: no token is trained, or EOS is trained in no row.
    """
    if not any(label != IGNORED for row in labels for label in row):
        raise LoradagError(
            "train.loss = 'completion': no token is trained, for no row has a completion. Set "
            "train.loss=full, or mend prepare.completion."
        )
    if not any(eos_token_id in row for row in labels):
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
