"""The loss curve, from the trainer's log."""

import csv
from pathlib import Path
from typing import Any

from loradag.runtime import replacing

COLUMNS = ("step", "loss", "learning_rate", "grad_norm")


def write_curve(path: Path, history: list[dict[str, Any]]) -> None:
    """Write a CSV of a line a logged step: loss in nats a token."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(entry for entry in history if "loss" in entry)


def final_loss(history: list[dict[str, Any]]) -> float:
    """The loss that was logged last, in nats a token."""
    return float([entry["loss"] for entry in history if "loss" in entry][-1])
