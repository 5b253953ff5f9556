"""How long stages take, by earlier runs of the same model in MLflow.

A stage takes as long as in the run that shares the most params with the job. Those of `train` are
scaled by its tokens:

    seconds = (seconds' - tokens' / speed') + tokens / speed'

with tokens and speed (tokens a second) of the report, and ' for the earlier run. The first term is
the time of loading. Where MLflow is shared, runs of other machines count too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError

NEWEST = 200  # the runs that are compared


@dataclass(frozen=True)
class EarlierRun:
    """A run as MLflow has it: flat params as text, metrics as `STAGE.KEY`."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]


def earlier_runs(project: Path, params: Mapping[str, Any]) -> list[EarlierRun]:
    """Runs of the model that `params` names, newest first; none if there is no store yet.

    Raises:
        LoradagError: the store cannot be read.
    """
    from loradag.tracking.database import database_path
    from loradag.tracking.flattening import flat_params
    from loradag.tracking.store import open_store, reason, shown_uri, store_uri

    database = database_path(store_uri(project))
    if database is not None and not database.exists():
        return []
    from mlflow.exceptions import MlflowException

    try:
        client, experiment = open_store(project)
        found = client.search_runs(
            [experiment],
            f"params.`model.source` = '{params['model']['source']}'",
            max_results=NEWEST,
            order_by=["attributes.start_time DESC"],
        )
    except MlflowException as error:
        raise LoradagError(f"MLflow at {shown_uri(store_uri(project))}: {reason(error)}") from error
    wanted = _model(flat_params(params))
    return [
        EarlierRun(run.data.params, run.data.metrics)
        for run in found
        if _model(run.data.params) == wanted
    ]


def estimate_seconds(
    stage: str, params: Mapping[str, str], tokens: float | None, runs: list[EarlierRun]
) -> float | None:
    """Wall time of the stage in seconds; None: no earlier run has it.

    Args:
        stage: its name.
        params: of the job, flat.
        tokens: that `train` will read, if known.
        runs: the newest first.
    """
    measured = [run for run in runs if f"{stage}.seconds" in run.metrics]
    if not measured:
        return None
    alike = max(measured, key=lambda run: _count_equal(run.params, params))
    seconds = alike.metrics[f"{stage}.seconds"]
    if stage != "train":
        return seconds
    speed, before = (alike.metrics.get(f"train.{key}") for key in ("tokens_per_second", "tokens"))
    if not (tokens and speed and before):
        return None
    return max(0.0, seconds - before / speed) + tokens / speed


def train_tokens(params: Mapping[str, Any], prepared: Mapping[str, Any] | None) -> float | None:
    """About how many tokens `train` reads; None: it depends on rows that are not prepared yet.

    Args:
        params: by section.
        prepared: the report of `prepare`.
    """
    train = params["train"]
    if train["max_steps"] is None:
        if prepared is None:
            return None
        share = min(1.0, (train["max_rows"] or prepared["train_rows"]) / prepared["train_rows"])
        return float(train["epochs"] * share * prepared["train_tokens"])
    rows = train["max_steps"] * train["batch_size"] * train["gradient_accumulation"]
    if train["packing"]:
        return float(rows * train["packing_tokens"])
    if prepared is None:
        return None
    return float(rows * prepared["train_tokens"] / prepared["train_rows"])


def _model(params: Mapping[str, str]) -> dict[str, str]:
    """The params that determine the model's size."""
    keys = ("model.source", "model.id", "model.path", "model.config.")
    return {key: value for key, value in params.items() if key.startswith(keys)}


def _count_equal(first: Mapping[str, str], second: Mapping[str, str]) -> int:
    return len(first.items() & second.items())
