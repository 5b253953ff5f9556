"""The sweep in MLflow: a parent run, found again by the sweep's key, and a child for each job."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loradag.comparison.job_records import JOB, JobRecord, SweepRecord
from loradag.comparison.ranking import winner
from loradag.config.problems import LoradagError
from loradag.planning.grid import output_overrides
from loradag.tracking.registry import WINNER_TAG
from loradag.tracking.store import create_run, open_store, reason, shown_uri, store_uri

MLFLOW_PARENT = "mlflow.parentRunId"  # by which MLflow's UI knows the parent of a run
SWEEP_TAG = "sweep.key"  # on the parent
JOB_TAG = "sweep.job"  # on a child: the sweep's key and a hash of the job's overrides


def open_parent(key: str, name: str, project: Path, overrides: list[str]) -> str:
    """The id of the sweep's run: the one of the same key, continued, or a new one."""
    with _clear_errors(project):
        client, experiment = open_store(project)
        found = client.search_runs([experiment], f"tags.`{SWEEP_TAG}` = '{key}'")
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {SWEEP_TAG: key, "sweep.overrides": " ".join(overrides)}
        return create_run(client, experiment, name, tags)


def open_child(sweep: SweepRecord, job: JobRecord) -> None:
    """Give `job` its run: that of an earlier try of the same job, or a new one."""
    this = hashlib.sha256("\n".join(sorted(output_overrides(job.overrides))).encode()).hexdigest()
    tag = f"{sweep.key}/{this}"
    with _clear_errors(Path(sweep.project)):
        client, experiment = open_store(Path(sweep.project))
        found = client.search_runs([experiment], f"tags.`{JOB_TAG}` = '{tag}'")
        if not found:
            tags = {JOB_TAG: tag} | job.swept
            job.run_id = create_run(client, experiment, job.name, tags, parent=sweep.run_id)
            return
        job.run_id = str(found[0].info.run_id)
        client.update_run(job.run_id, status="RUNNING")
        # The sweep has a new run where its former one was deleted, which leaves the children.
        client.set_tag(job.run_id, MLFLOW_PARENT, sweep.run_id)
        earlier = found[0].data.tags
        job.ran_before = [
            key.removeprefix("stage.")
            for key, value in earlier.items()
            if key.startswith("stage.") and value == "ran"
        ]


def close_child(sweep: SweepRecord, job: JobRecord) -> None:
    with _clear_errors(Path(sweep.project)):
        client, _ = open_store(Path(sweep.project))
        # A stage that an earlier try of this job ran is in the cache by now, and yet it ran here.
        for stage in job.ran_before:
            client.set_tag(job.run_id, f"stage.{stage}", "ran")
        client.set_tag(job.run_id, "sweep.failure", job.failure or "")
        client.set_tag(job.run_id, "sweep.pruned", job.pruned or "")
        status = "FAILED" if job.failure else "KILLED" if job.pruned else "FINISHED"
        client.set_terminated(job.run_id, status)


def close_parent(sweep: SweepRecord, jobs: list[JobRecord], files: list[Path], status: str) -> None:
    """Put the comparison on the sweep's run and end it."""
    with _clear_errors(Path(sweep.project)):
        client, experiment = open_store(Path(sweep.project))
        stopped = f"tags.`{MLFLOW_PARENT}` = '{sweep.run_id}' and attributes.status = 'RUNNING'"
        for run in client.search_runs([experiment], stopped):  # with the sweep: nobody ends them
            client.set_terminated(run.info.run_id, "KILLED")
        for file in files:
            folder = f"jobs/{file.parent.name}" if file.name == JOB else None
            client.log_artifact(sweep.run_id, str(file), folder)
        client.log_metric(sweep.run_id, "sweep.jobs", len(jobs))
        client.log_metric(
            sweep.run_id, "sweep.failed", sum(job.failure is not None for job in jobs)
        )
        client.log_metric(sweep.run_id, "sweep.pruned", sum(job.pruned is not None for job in jobs))
        if measured := [job.perplexity for job in jobs if job.perplexity is not None]:
            client.log_metric(sweep.run_id, "sweep.best_perplexity", min(measured))
        best = winner(jobs)
        if best and "train" in best.reports:
            # The registry finds it when the winner is published in the project itself.
            client.set_tag(sweep.run_id, WINNER_TAG, best.reports["train"]["checkpoint_key"])
        client.set_terminated(sweep.run_id, status)


@contextmanager
def _clear_errors(project: Path) -> Iterator[None]:
    """MLflow's errors in one line."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise LoradagError(
            f"MLflow at {shown_uri(store_uri(project))} does not take the sweep: {reason(error)}. "
            "Fix that, or set MLFLOW_TRACKING_URI to another store, and run the sweep again: "
            "what has run is in the cache."
        ) from error
