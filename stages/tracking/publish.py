"""The MLflow run made complete: params, every number of every report, the curve, the files.

Everything comes from what stands on disk, so the run is the same whether a stage ran just now or
its outs came from the cache.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.schema import LoradagError
from stages.runtime import Paths
from stages.tracking.live import CURVES, close_run, log_points, logged_steps, open_run
from stages.tracking.provenance import git_tags, lock_hash
from stages.tracking.store import reason, shown_uri, store_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALUE_LIMIT = 6000  # characters of a param; MLflow's own


def publish(
    paths: Paths,
    params: Mapping[str, Any],
    reports: Mapping[str, dict[str, Any]],
    ran: Mapping[str, bool],
) -> str:
    """Complete the MLflow run of this pipeline run and finish it; returns where it can be seen.

    `params` by section, `reports` and `ran` (or else: came from the cache) by stage.

    Raises:
        LoradagError: MLflow cannot be reached, or refuses.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    name = run_name(params)
    key = reports.get("train", {}).get("checkpoint_key", "")
    try:
        client, run_id = open_run(paths, key, name)
        _log(client, run_id, name, paths, params, reports, ran)
        close_run(paths, client, run_id)
        experiment_id = client.get_run(run_id).info.experiment_id
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise LoradagError(
            f"MLflow at {shown_uri(store_uri(paths.root))} did not take the run: {reason(error)}. "
            "Mend that, or set MLFLOW_TRACKING_URI to another store; then `dvc repro` publishes "
            "the run, and nothing else runs again."
        ) from error
    uri = shown_uri(store_uri(paths.root))
    server = uri if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"


def _log(
    client: MlflowClient,
    run_id: str,
    name: str,
    paths: Paths,
    params: Mapping[str, Any],
    reports: Mapping[str, dict[str, Any]],
    ran: Mapping[str, bool],
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    now = int(time.time() * 1000)
    before = client.get_run(run_id).data
    # The run may have been completed before and stopped since: what it holds is not logged twice.
    metrics = {k: v for k, v in flat_metrics(reports).items() if before.metrics.get(k) != v}
    tags = git_tags(paths.root) | {f"stage.{s}": "ran" if r else "cached" for s, r in ran.items()}
    if (digest := lock_hash(paths.root / "dvc.lock")) is not None:
        tags["dvc.lock"] = digest
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
        params=[Param(key, value) for key, value in flat_params(params).items()],
        tags=[RunTag(key, value) for key, value in tags.items()],
    )
    if "mlflow.parentRunId" not in before.tags:  # a sweep has named its children itself
        client.update_run(run_id, name=name)
    steps = logged_steps(client, run_id)
    curves = {s: points for s, points in read_curves(paths.loss).items() if s not in steps}
    log_points(client, run_id, curves)
    for folder, files in (
        (None, [paths.page, paths.params, paths.root / "dvc.lock"]),
        ("plots", [paths.loss]),
        ("reports", [paths.report(stage) for stage in reports]),
    ):
        for file in files:
            if file.exists():
                client.log_artifact(run_id, str(file), folder)


def run_name(params: Mapping[str, Any]) -> str:
    """What distinguishes the run at a glance, e.g. `gemma-2b nf4 lora r=8 alpha=16`."""
    model, adapter, method = params["model"], params["adapter"], params["train"]["method"]
    parts = [str(model["id"] or model["path"] or model["source"]).rstrip("/").split("/")[-1]]
    if params["quantize"]["scheme"] != "none":
        parts.append(params["quantize"]["scheme"])
    if adapter["variant"] != "none":
        parts += [adapter["variant"], f"r={adapter['r']}", f"alpha={adapter['alpha']:g}"]
    if method != "sft":
        parts.append(method)
    return " ".join(parts)


def flat_params(params: Mapping[str, Any]) -> dict[str, str]:
    """`{"adapter": {"r": 8}}` to `{"adapter.r": "8"}`: text as it is, all else as JSON."""

    def shown(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"

    return {key: shown(value) for key, value in _leaves(params)}


def flat_metrics(reports: Mapping[str, dict[str, Any]]) -> dict[str, float]:
    """Every number of every report as `stage.key`, truth as 0 or 1; lists are left to the files.

    A list whose items have a `path` (the files of an export) goes by file name.
    """

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: named(item) for key, item in value.items()}
        if isinstance(value, list) and all(isinstance(i, Mapping) and "path" in i for i in value):
            return {Path(item["path"]).name: named(item) for item in value}
        return value

    return {
        key: float(value)
        for key, value in _leaves(named(reports))
        if isinstance(value, bool | int | float)
    }


def read_curves(path: Path) -> dict[int, dict[str, float]]:
    """`plots/loss.csv` as {step: {metric: value}}."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {
            int(row["step"]): {name: float(row[name]) for name in CURVES if row.get(name)}
            for row in csv.DictReader(file)
        }


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
