"""The MLflow run while the pipeline runs: the losses appear as they are computed.

`train` opens the run and `report` completes it. In between, `.loradag/live.json` records the run's
id and the key of the training that it belongs to. A process with the same key continues the run,
also after a kill; one with another key ends it as KILLED. So does a report of other params or
numbers than an earlier report has begun to log: MLflow refuses to change a param.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from loradag.runtime import Paths, write_json
from loradag.tracking.store import TOKEN_TAG, create_run, find_runs, open_store, reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from transformers import TrainerCallback

CURVES = ("loss", "eval_loss", "learning_rate", "grad_norm")  # as the Trainer logs, and in plots/

LIVE = "live.json"  # the run that is open
CLOSED = "closed.json"  # the run that was closed last


def live_callback(paths: Paths, key: str) -> TrainerCallback:
    """A callback that logs `CURVES` at every logging step to the run of the training `key`.

    A tracking failure never stops the training. It is printed once, and the report logs the rest of
    the curve.
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
            logged = logged_steps(client, run_id)

            def log(step: int, points: dict[str, float]) -> None:
                new = {name: value for name, value in points.items() if step not in logged[name]}
                log_points(client, run_id, {step: new})

            self.log = log

        def guard(self, action: Callable[[], None]) -> None:
            try:
                action()
            except Exception as error:
                self.log = None
                print(
                    f"train: MLflow takes no live points ({reason(error)}); training continues, "
                    "and the report will log the curve.",
                    file=sys.stderr,
                )

    return Live()


def open_run(
    paths: Paths, key: str, name: str, content: str | None = None
) -> tuple[MlflowClient, str]:
    """The run of this pipeline run: `MLFLOW_RUN_ID`'s, the one left open under `key`, or a new one.

    A run left open under another key, or by a report of other content, is ended as KILLED.

    Args:
        content: what a report will log, see `close_run`. A report that was stopped, even after it
            had closed its run, continues the run of the same content.
    """
    client, experiment_id = open_store(paths.root)
    if run_id := os.environ.get("MLFLOW_RUN_ID"):
        return client, run_id
    closed = _read(paths, CLOSED)
    is_same = content is not None and closed.get("content") == content
    if is_same and _status(client, closed["run_id"]) is not None:
        return client, closed["run_id"]
    left = _read(paths, LIVE)
    if left:
        known = [left["run_id"]] if left["run_id"] else []
        for run_id in known or find_runs(client, experiment_id, left["token"]):
            if _status(client, run_id) == "RUNNING":
                if left["key"] == key and (not content or left.get("content") in (None, content)):
                    if content is not None:
                        write_json(paths.state / LIVE, left | {"content": content})
                    return client, run_id
                client.set_terminated(run_id, "KILLED")
    # The token comes first: a process killed before it knows the run's id still finds the run.
    token = uuid.uuid4().hex
    entry = {"key": key, "token": token, "run_id": None, "content": content}
    write_json(paths.state / LIVE, entry)
    run_id = create_run(client, experiment_id, name, {TOKEN_TAG: token})
    write_json(paths.state / LIVE, entry | {"run_id": run_id})
    return client, run_id


def close_run(paths: Paths, client: MlflowClient, run_id: str, content: str) -> None:
    """End the run as FINISHED, so that the next pipeline run opens its own.

    Args:
        content: a hash of what was logged.
    """
    if "MLFLOW_RUN_ID" in os.environ:
        client.set_terminated(run_id)
        return
    write_json(paths.state / CLOSED, {"content": content, "run_id": run_id})
    client.set_terminated(run_id)
    (paths.state / LIVE).unlink(missing_ok=True)


def logged_steps(client: MlflowClient, run_id: str) -> dict[str, set[int]]:
    """The optimizer steps that the run has of each curve."""
    return {
        name: {point.step for point in client.get_metric_history(run_id, name)} for name in CURVES
    }


def without_logged(
    client: MlflowClient, run_id: str, curves: Mapping[int, Mapping[str, float]]
) -> dict[int, dict[str, float]]:
    """The points of {step: {metric: value}} that the run does not have yet."""
    logged = logged_steps(client, run_id)
    return {
        step: {name: value for name, value in points.items() if step not in logged[name]}
        for step, points in curves.items()
    }


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


def _read(paths: Paths, name: str) -> dict[str, Any]:
    path = paths.state / name
    content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return content


def _status(client: MlflowClient, run_id: str) -> str | None:
    """The status of a run; None where there is none, or where it was deleted."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # no answer; a new run would double this one
        return None  # another store, or a run that was deleted for good
    return str(info.status) if info.lifecycle_stage == "active" else None
