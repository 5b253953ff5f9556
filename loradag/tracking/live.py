"""The MLflow run while the pipeline runs: the loss appears as it is made.

`train` opens the run and `report` completes it. Between them only `.loradag/live.json` knows it:
the run's id, and the key of the training that it belongs to. Whoever comes with the same key, be
it after a kill, continues the run; whoever comes with another ends it as KILLED.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from loradag.runtime import Paths, write_json
from loradag.tracking.store import create_run, open_store, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from transformers import TrainerCallback

CURVES = ("loss", "learning_rate", "grad_norm")  # as the Trainer logs them, and in plots/loss.csv


def live_callback(paths: Paths, key: str) -> TrainerCallback:
    """A callback that logs `CURVES` at every logging step to the run of the training `key`.

    A tracking failure never stops the training: it is told once, and the rest of the curve is
    left to the report, which logs what is missing.
    """
    from transformers import TrainerCallback

    class Live(TrainerCallback):
        def __init__(self) -> None:
            self.log: Callable[[int, dict[str, float]], None] | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                self.guard(self.open)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any
        ) -> None:
            points = {name: float(logs[name]) for name in CURVES if name in logs}
            log = self.log
            if points and log is not None:
                self.guard(lambda: log(state.global_step, points))

        def open(self) -> None:
            client, run_id = open_run(paths, key, name=f"training {key[:8]}")
            last = max(logged_steps(client, run_id), default=-1)

            def log(step: int, points: dict[str, float]) -> None:
                if step > last:
                    log_points(client, run_id, {step: points})

            self.log = log

        def guard(self, action: Callable[[], None]) -> None:
            try:
                action()
            except Exception as error:
                self.log = None
                print(
                    f"train: MLflow takes no live points ({reason(error)}); training goes on, "
                    "and the report will log the curve.",
                    file=sys.stderr,
                )

    return Live()


def open_run(paths: Paths, key: str, name: str) -> tuple[MlflowClient, str]:
    """The run of this pipeline run: `MLFLOW_RUN_ID`'s, the one left open under `key`, or a new one.

    A run left open under another key is ended as KILLED.
    """
    client, experiment_id = open_store(paths.root)
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        return client, run_id
    live = paths.state / "live.json"
    if live.exists():
        left = json.loads(live.read_text())
        if _is_open(client, left["run_id"]):
            if left["key"] == key:
                return client, left["run_id"]
            client.set_terminated(left["run_id"], "KILLED")
    run_id = create_run(client, experiment_id, name, {})
    write_json(live, {"key": key, "run_id": run_id})
    return client, run_id


def close_run(paths: Paths, client: MlflowClient, run_id: str) -> None:
    """End the run as FINISHED, so that the next pipeline run opens its own."""
    client.set_terminated(run_id)
    if "MLFLOW_RUN_ID" not in os.environ:
        (paths.state / "live.json").unlink()


def logged_steps(client: MlflowClient, run_id: str) -> set[int]:
    """The optimizer steps whose loss the run holds already."""
    return {point.step for point in client.get_metric_history(run_id, "loss")}


def log_points(
    client: MlflowClient, run_id: str, curves: Mapping[int, Mapping[str, float]]
) -> None:
    """Log {step: {metric: value}}."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[
            Metric(name, value, now, step)
            for step, points in curves.items()
            for name, value in points.items()
        ],
    )


def _is_open(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException:  # another store, or a run that was deleted for good
        return False
    return bool(info.lifecycle_stage == "active" and info.status == "RUNNING")
