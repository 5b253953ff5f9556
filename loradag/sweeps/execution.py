"""Run the DAG of one workspace so that no stage runs twice for the same inputs, whoever else runs.

    python -m loradag.sweeps.execution WORKSPACE

DVC takes a stage from its run cache if somebody has *finished* it. Here whoever is about to
reproduce a stage first takes a lock named by the stage's run-cache key (a hash of command,
dependencies and params), beside the cache: who comes second waits, and then finds the result. So
the guarantee needs no schedule: it holds for every launcher and sweeper, for machines that share a
disk, and after a crash, for the kernel releases a dead process's locks.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loradag.runtime import write_json

RECORD = ".loradag/execution.json"


def execute(workspace: Path) -> bool:
    """Reproduce the stages in order, each under its lock; False after a stage that failed.

    `RECORD` says of each stage whether it `ran` and the `seconds` that it took here, and which one
    `failed`.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo, lock_repo
    from dvc.repo.reproduce import get_active_graph, plan_repro

    record: dict[str, Any] = {"stages": [], "failed": None}
    os.chdir(workspace)
    repo = Repo()
    started = time.perf_counter()
    with lock_repo(repo):
        for stage in plan_repro(get_active_graph(repo.index.graph)):
            try:
                with _lock(stage):
                    started = time.perf_counter()  # waiting for another job costs nothing
                    ran = _reproduce(stage)
            except DvcException as error:
                logging.getLogger("dvc").error(error)
                record["failed"], ran = stage.name, True
            seconds = round(time.perf_counter() - started, 3)
            record["stages"].append({"name": stage.name, "ran": ran, "seconds": seconds})
            if record["failed"]:
                break
    write_json(Path(RECORD), record)
    return record["failed"] is None


def _reproduce(stage: Any) -> bool:
    """What `dvc repro` does for one stage; returns whether its command ran."""
    from dvc.stage.cache import RunCacheNotFoundError

    try:
        stage.repo.stage_cache.restore(stage, dry=True)
        cached = True
    except RunCacheNotFoundError:
        cached = False
    changed = stage.reproduce() is not None
    if changed:
        stage.dump(update_pipeline=False)
    return changed and not cached


@contextmanager
def _lock(stage: Any) -> Iterator[None]:
    from dvc.stage.cache import _can_hash, _get_stage_hash
    from filelock import FileLock, Timeout

    stage.save_deps()
    if not _can_hash(stage):  # never cached: `report` runs in every job
        yield
        return
    locks = Path(stage.repo.cache.local_cache_dir) / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{_get_stage_hash(stage)}.lock", poll_interval=0.2)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{stage.name}: another job runs it for the same inputs; waiting.", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def end_with_parent() -> None:
    """End this process and the stage that it runs as soon as the parent is gone, even killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with_parent()
    sys.exit(0 if execute(Path(sys.argv[1])) else 1)
