"""All that is measured of a model, in the same way for base, quantized base and tuned model."""

import math
from collections.abc import Mapping
from typing import Any

from loradag.config.evaluate import Evaluate
from loradag.config.problems import LoradagError
from loradag.evaluation.general import measure_general
from loradag.evaluation.held_out import HeldOut
from loradag.evaluation.tasks import score_tasks

OPTIONAL = ("general", "tasks")  # empty where the options leave them out


def measure(model: Any, held_out: HeldOut, evaluate: Evaluate) -> dict[str, Any]:
    """Held-out loss, loss on general text, task scores.

    Raises:
        LoradagError: a perplexity that is no finite number.
    """
    losses: dict[str, Any] = {
        "held_out": held_out.measure(model),
        "general": measure_general(model, held_out.tokenizer, evaluate),
    }
    for text, loss in losses.items():
        if loss and not math.isfinite(loss["perplexity"]):
            raise LoradagError(
                f"the {text.replace('_', '-')} perplexity is {loss['perplexity']}, computed in "
                f"{model.dtype}: the numbers of the model leave the range of its dtype, or its "
                "weights are broken. Set evaluate.dtype=float32, or quantize at more bits."
            )
    return {**losses, "tasks": score_tasks(model, held_out.tokenizer, evaluate)}


def compare(models: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """What was measured of each model, by its name, as reports have it.

    The held-out loss by model; `general` and `tasks` by model where they were measured.
    """
    optional = {
        kind: {name: found[kind] for name, found in models.items()}
        for kind in OPTIONAL
        if any(found[kind] for found in models.values())
    }
    return {name: found["held_out"] for name, found in models.items()} | optional
