"""The MLflow run, completed: params, every number of every report, the curve, the files.

Everything comes from the files on disk, so the run is the same whether a stage ran just now or
its outs came from the cache.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.config.problems import LoradagError
from loradag.runtime import Paths
from loradag.runtime.report_keys import Reports
from loradag.tracking.datasets import dataset_inputs
from loradag.tracking.flattening import flat_metrics
from loradag.tracking.live import close_run, log_points, open_run, without_logged
from loradag.tracking.registry import (
    name_champion,
    register,
    register_adapter,
    registry_tags,
)
from loradag.tracking.store import NAME_LIMIT, reason, shown_uri, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient


def publish(
    paths: Paths,
    name: str,
    params: Mapping[str, str],
    reports: Reports,
    curves: Mapping[int, Mapping[str, float]],
    tags: Mapping[str, str],
    register_as: str | None = None,
) -> str:
    """Complete the MLflow run of this pipeline run and finish it; returns where it is listed.

    Args:
        paths: of the project, whose files become the run's artifacts.
        name: of the run, where a sweep has not named it already.
        params: flat, see `flattening.flat_params`.
        reports: by stage.
        curves: {step: {metric: value}}.
        tags: see `provenance`.
        register_as: name of the registered model that the merged one becomes a version of; an
            adapter becomes a version of the same name with `-adapter`.

    Raises:
        LoradagError: MLflow cannot be reached, or refuses.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    key = reports["train"]["checkpoint_key"] if "train" in reports else ""
    try:
        content = _digest([params, reports])
        client, run_id = open_run(paths, key, name, content)
        experiment_id = _log(client, run_id, name, params, reports, curves, tags)
        _log_files(client, run_id, paths, list(reports))
        if register_as:
            _register(client, paths, register_as, run_id, registry_tags(tags), key)
        close_run(paths, client, run_id, content)
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise LoradagError(
            f"MLflow at {shown_uri(store_uri(paths.root))} did not take the run: {reason(error)}. "
            "Correct that, or set MLFLOW_TRACKING_URI to another store; then `dvc repro` publishes "
            "the run, and nothing else runs again."
        ) from error
    return runs_url(paths.root, experiment_id)


def runs_url(root: Path, experiment_id: str) -> str:
    """Where MLflow's UI lists the runs of an experiment: on its server, or where `make ui` serves.

    Without the workflow type the UI opens an experiment at its traces, of which there are none.
    """
    uri = shown_uri(store_uri(root))
    server = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def _log(
    client: MlflowClient,
    run_id: str,
    name: str,
    params: Mapping[str, str],
    reports: Reports,
    curves: Mapping[int, Mapping[str, float]],
    tags: Mapping[str, str],
) -> str:
    """Log what the run does not have yet; returns the id of its experiment."""
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    run = client.get_run(run_id)
    # It may have been completed before, by a report that was then stopped: nothing is logged twice.
    metrics = {k: v for k, v in flat_metrics(reports).items() if run.data.metrics.get(k) != v}
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
        params=[Param(key, value) for key, value in params.items()],
        # Stopped and started again, a report finds as cached what ran before it was stopped.
        tags=[
            RunTag(key, value)
            for key, value in tags.items()
            if not (key.startswith("stage.") and run.data.tags.get(key) == "ran")
        ],
    )
    client.log_inputs(run_id, dataset_inputs(params, reports, tags.get("data")))
    if "mlflow.parentRunId" not in run.data.tags:  # a sweep has named its children itself
        client.update_run(run_id, name=name[:NAME_LIMIT])
    log_points(client, run_id, without_logged(client, run_id, curves))
    return str(run.info.experiment_id)


def _log_files(client: MlflowClient, run_id: str, paths: Paths, stages: list[str]) -> None:
    for folder, files in (
        (None, [paths.page, paths.params, paths.root / "dvc.lock"]),
        ("plots", [paths.loss, paths.eval_loss]),
        ("reports", [paths.report(stage) for stage in stages]),
    ):
        for file in files:
            if file.exists():
                client.log_artifact(run_id, str(file), folder)


def _register(
    client: MlflowClient, paths: Paths, name: str, run_id: str, tags: Mapping[str, str], key: str
) -> None:
    """Register the merged model and, where there is one, the adapter; name a sweep's winner."""
    from loradag.models.loading import is_adapter

    versions = {name: register(client, paths, name, run_id, tags)}
    if is_adapter(paths):
        adapter = f"{name}-adapter"
        versions[adapter] = register_adapter(client, paths, adapter, run_id, tags)
    for model, number in versions.items():
        name_champion(client, model, number, run_id, key)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
