"""The curves of a training, from the trainer's log: the loss, and the loss on held-out rows."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.runtime import Paths, replacing

if TYPE_CHECKING:
    from transformers import TrainerCallback

LOSS_COLUMNS = ("step", "loss", "learning_rate", "grad_norm")
EVAL_COLUMNS = ("step", "eval_loss")


def write_curves(paths: Paths, history: list[dict[str, Any]]) -> None:
    """Write a CSV line for each logged step and for each evaluation; losses in nats a token."""
    _write(paths.loss, LOSS_COLUMNS, history)
    _write(paths.eval_loss, EVAL_COLUMNS, history)


def curves_callback(paths: Paths) -> TrainerCallback:
    """A callback that writes the curves anew at each evaluation: a search watches them."""
    from transformers import TrainerCallback

    class Curves(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            if state.is_world_process_zero and "eval_loss" in logs:
                write_curves(paths, state.log_history)

    return Curves()


def _write(path: Path, columns: tuple[str, ...], history: list[dict[str, Any]]) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entry for entry in history if columns[1] in entry)


def final_loss(history: list[dict[str, Any]]) -> float:
    """The loss that was logged last: nats a token, the mean over the steps since the log before."""
    return float([entry["loss"] for entry in history if "loss" in entry][-1])


def loss_at(history: list[dict[str, Any]], step: int) -> float:
    """The loss on held-out rows after `step`, in nats a token."""
    (loss,) = (e["eval_loss"] for e in history if "eval_loss" in e and e["step"] == step)
    return float(loss)
