"""One job of a sweep, in whatever process the launcher starts it."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

from loradag.comparison.job_records import JobRecord, SweepRecord
from loradag.config.problems import LoradagError
from loradag.config.validation import validate
from loradag.runtime import Paths
from loradag.runtime.parent import end_with_parent
from loradag.runtime.report_keys import Reports
from loradag.runtime.stage import start_time
from loradag.sweeps.execution import RECORD, WAITING
from loradag.sweeps.gpus import claim_gpu
from loradag.sweeps.mlflow_runs import close_child, open_child
from loradag.sweeps.workspaces import make_workspace

PRUNE = "prune.txt"  # next to a job's workspace: why its training is to end

log = logging.getLogger(__name__)


def run_job(params: dict[str, Any], folder: Path, number: int, overrides: list[str]) -> JobRecord:
    """Run the DAG for `params` in a workspace below `folder`/`number`.

    A job that fails raises nothing: Hydra would end the other jobs at the first exception. The
    failure is in the record.
    """
    sweep = SweepRecord.read(folder)
    _end_with_sweep(folder)
    given = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    swept = {key: given[key] for key in sweep.swept if key in given}
    job = JobRecord(number, overrides, swept)
    place = folder / str(number)
    workspace = place / "workspace"
    try:
        open_child(sweep, job)
        validate(params, source="the job")
        make_workspace(workspace, folder / "source", Path(sweep.project), Path(sweep.cache), params)
        log.info("#%d %s: started", number, job.name)
        with claim_gpu(sweep.gpus, f"#{number}") as gpu:
            environment = _environment(sweep, job, gpu)
            folders = [str(workspace)] + [sweep.project] * sweep.remote
            job.failure, job.pruned = _execute(folders, place / "job.log", environment, number)
        _collect(workspace, job)
    except LoradagError as error:
        job.failure = str(error)
    if job.failure is None and job.perplexity is not None and not math.isfinite(job.perplexity):
        job.failure = f"evaluate: perplexity is {job.perplexity}. Lower train.learning_rate."
    job.write(place)
    if job.run_id is not None:
        close_child(sweep, job)
    log.info("#%d %s: %s", number, job.name, _summarize(job))
    keep = params["sweep"]["keep"]
    if keep == "none" or (keep == "failed" and job.failure is None):
        shutil.rmtree(workspace, ignore_errors=True)
    return job


def _environment(sweep: SweepRecord, job: JobRecord, gpu: str | None) -> dict[str, str]:
    from loradag.tracking.store import store_uri

    environment = os.environ | {
        "MLFLOW_TRACKING_URI": store_uri(Path(sweep.project)),
        # The stages' `python` is this one, activated or not.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    if job.run_id is not None:
        environment["MLFLOW_RUN_ID"] = job.run_id
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    if sweep.threads is not None:
        environment["LORADAG_THREADS"] = str(sweep.threads)
    return environment


def _execute(
    folders: list[str], output: Path, environment: dict[str, str], number: int
) -> tuple[str | None, str | None]:
    """Run the DAG in a process of its own; returns why it failed, and why it was pruned.

    Args:
        folders: the workspace, and the project if stages may come from its DVC remote.
    """
    workspace, waiting, pruned = Path(folders[0]), "", None
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "loradag.sweeps.execution", *folders],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to be ended with all its processes
        )
        try:
            while pruned is None:
                try:
                    process.wait(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if (now := _waiting(workspace)) and now != waiting:
                        log.info("#%d %s", number, now)
                    waiting = now
                    pruned = _reason_to_prune(workspace)
        finally:
            # Also a stage that outlives its executor, where only that was killed.
            if process.returncode is None or process.returncode < 0:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    if pruned is not None and code != 0:
        return None, pruned
    return (None if code == 0 else _reason(workspace, output)), None


@cache
def _end_with_sweep(folder: Path) -> None:
    """End a launcher's worker as soon as the sweep is gone, even killed, or was started again.

    A worker of joblib would wait for another job for five minutes, and a job of submitit would run
    on beside that of the same sweep started again. What it runs ends with it. The sweep itself
    outlives the shell that started it (`nohup`).
    """
    sweep = SweepRecord.read(folder)
    if os.getpid() == sweep.pid:
        return
    end_with_parent()

    def watch() -> None:
        while not _is_gone(sweep, folder):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _is_gone(sweep: SweepRecord, folder: Path) -> bool:
    with suppress(OSError, ValueError):  # it is being written, or a network disk stalls
        if SweepRecord.read(folder).pid != sweep.pid:
            return True
    if sweep.local:
        try:
            os.kill(sweep.pid, 0)  # sends nothing
        except ProcessLookupError:
            return True
    return False


def _reason_to_prune(workspace: Path) -> str | None:
    """Why the training is to end, while it runs; one that has ended is complete."""
    try:
        reason = (workspace.parent / PRUNE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return None if "train" in (stage["name"] for stage in _stages(workspace)) else reason


def _stages(workspace: Path) -> list[dict[str, Any]]:
    """The stages that have ended, also by a failure."""
    record = workspace / RECORD
    stages: list[dict[str, Any]] = (
        json.loads(record.read_text())["stages"] if record.exists() else []
    )
    return stages


def _waiting(workspace: Path) -> str:
    """What the job waits for now, if it does."""
    try:
        return (workspace / WAITING).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _reason(workspace: Path, output: Path) -> str:
    """The failed stage's last lines; stages print a user's mistake as `STAGE: ...`."""
    record = workspace / RECORD
    failed = json.loads(record.read_text())["failed"] if record.exists() else None
    shown = output.read_text(errors="replace").splitlines()
    lines = [line for line in shown if line.strip(" ^~")]  # without a traceback's underlines
    for index in range(len(lines) - 1, -1, -1):
        if failed and lines[index].startswith(f"{failed}: "):
            reason = lines[index:]
            break
    else:
        reason = [line for line in lines if not line.startswith("failed to reproduce")][-2:]
        reason[:0] = [f"{failed or 'the job'} failed:"]
    ends = [i for i, line in enumerate(reason) if "failed to run: " in line]
    if ends and ends[0] > 0:
        exit_code = reason[ends[0]].rpartition("exited with ")[2]
        reason = reason[: ends[0]]
        if exit_code in ("-9", "137"):
            reason.append("Killed by the system, most likely because memory ran out.")
    return "\n".join(reason)


def _collect(workspace: Path, job: JobRecord) -> None:
    """Take the numbers out of the workspace, which may be deleted."""
    paths = Paths(workspace)
    job.stages = _stages(workspace)
    if job.pruned is not None:
        seconds = round(time.time() - start_time(paths, "train"), 3)
        job.stages.append({"name": "train", "ran": True, "seconds": seconds})
    reports: dict[str, dict[str, Any]] = {}
    for stage in job.stages:
        path = paths.report(stage["name"])
        if path.exists():
            reports[stage["name"]] = json.loads(path.read_text(encoding="utf-8"))
            if not stage["ran"]:
                job.saved_seconds += reports[stage["name"]].get("seconds", 0.0)
    job.reports = cast(Reports, reports)
    job.adapter_bytes = sum(file.stat().st_size for file in paths.adapter.glob("*.safetensors"))
    if "train" in job.reports or job.pruned is not None:
        job.curve = read_curve(paths.loss, "loss")
        job.held_out = read_curve(paths.eval_loss, "eval_loss")


def read_curve(path: Path, column: str) -> list[tuple[int, float]]:
    """The (step, value) points of a curve in `plots/`; none where there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get(column)]
    return [(int(row["step"]), float(row[column])) for row in rows]


def _summarize(job: JobRecord) -> str:
    if job.failure is not None:
        return f"FAILED. {job.failure}"
    if job.pruned is not None:
        return job.pruned
    ran = f"ran {', '.join(job.ran)} ({job.seconds:.0f} s)" if job.ran else "ran nothing"
    saved = f"{job.saved_seconds:.0f} s from the cache"
    result = "" if job.perplexity is None else f"perplexity {job.perplexity:.4g}; "
    return f"{result}{ran}, {saved}"
