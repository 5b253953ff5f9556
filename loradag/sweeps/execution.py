"""Run the DAG of one workspace so that no stage runs twice for the same inputs, whoever else runs.

    python -m loradag.sweeps.execution WORKSPACE [PROJECT]

With PROJECT, what the cache lacks comes from the DVC remote of that folder.

DVC takes a stage from its run cache if another process has *finished* it. Here a process that is
about to reproduce a stage first takes a lock that is named by the stage's run-cache key (a hash of
command, dependencies, params and outs), next to the cache: the second process waits, and then finds
the result. So the guarantee needs no schedule: it holds for every launcher and sweeper, for clones
that share a cache, and after a crash: a lock passes on as soon as its process is gone, or after
`LEASE` seconds without a sign of life if it was on another host. A holder that was only suspended
for so long runs its stage a second time; the results are the same.

What executes is `Repo.reproduce` of one stage at a time, in a workspace that starts without a
`dvc.lock`: DVC itself decides what its cache has for the stage's present inputs. The key is
computed by the code of `plan`, and compared with what DVC recorded after the stage.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loradag.compat import dvc
from loradag.config.problems import LoradagError
from loradag.planning.pipeline import Pipeline
from loradag.runtime import Paths, write_json
from loradag.runtime.parent import end_with_parent
from loradag.runtime.stage import has_started

RECORD = ".loradag/execution.json"
LEASE = 300.0  # seconds; the network disk's own delay in passing on a sign of life is far less
WAITING = ".loradag/waiting.txt"  # in a workspace: what it waits for, while it does


def execute(workspace: Path, project: Path | None = None) -> bool:
    """Reproduce the stages in order, each under its lock; False after a stage that failed.

    Args:
        workspace: where they run.
        project: whose DVC remote has stages that others have run; None: the cache is all there is.

    `RECORD` lists of each stage its `key`, whether it `ran` and the `seconds` that it took here,
    and which stage `failed`.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.chdir(workspace)
    paths = Paths(Path())
    params = dvc.read_yaml(paths.params)
    repo, pipeline = Repo(), Pipeline(Path(), dvc.cache_folder(Path()))
    record: dict[str, Any] = {"stages": [], "failed": None}
    made: dict[str, str] = {}  # the hashes of the outs so far
    for stage in pipeline.stages(params):
        inputs = pipeline.inputs(stage, params, made)
        key = dvc.run_cache_key(inputs)
        # A stage that is never cached waits for nothing: it runs in every job.
        with _lock(pipeline.cache, stage.name, key if stage.cacheable else None):
            started = time.perf_counter()  # waiting for another job costs nothing
            try:
                if project is not None and stage.cacheable:
                    dvc.pull_files(project, key)
                repo.reproduce(targets=[stage.name], single_item=True)
                recorded = dvc.read_lock(Path())[stage.name]
                check_key(stage.name, inputs, recorded, pipeline.cache)
            except (DvcException, LoradagError) as error:
                print(*_messages(stage.name, error), sep="\n", flush=True)
                record["failed"] = stage.name
            seconds = round(time.perf_counter() - started, 3)
        ran = has_started(paths, stage.name)
        record["stages"].append({"name": stage.name, "key": key, "ran": ran, "seconds": seconds})
        write_json(Path(RECORD), record)  # now: a search may end the next stage
        if record["failed"]:
            break
        made |= {out["path"]: out["md5"] for out in recorded.get("outs", [])}
    return record["failed"] is None


def check_key(stage: str, inputs: Mapping[str, Any], entry: Mapping[str, Any], cache: Path) -> None:
    """Check that DVC recorded the stage for the inputs that its lock was named by.

    Raises:
        LoradagError: it did not: an input changed while the stage ran, or DVC computes its key
            otherwise than `plan`. The result is removed from the run cache.
    """
    recorded = dvc.recorded_inputs(entry)
    key, recorded_key = dvc.run_cache_key(inputs), dvc.run_cache_key(recorded)
    if key == recorded_key:
        return
    dvc.forget_runs(cache, recorded_key)
    raise LoradagError(
        f"the stage ran for other inputs than it was locked for.\n"
        f"  key computed before it: {key}\n"
        f"  key recorded by DVC:    {recorded_key}\n"
        + "\n".join(f"  {line}" for line in _differences(inputs, recorded))
        + "\nAn input was changed while the stage ran, or this version of DVC computes keys in "
        "another way (see loradag/compat/dvc.py). Run the sweep again."
    )


def _differences(inputs: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[str]:
    """Where the two differ, a line for each dependency, param, command and list of outs."""

    def flat(content: Mapping[str, Any]) -> dict[str, Any]:
        params = content.get("params", {}).get("params.yaml", {})
        return {
            "cmd": content["cmd"],
            **{f"dependency {dep['path']}": dep["md5"] for dep in content["deps"]},
            **{f"param {name}": value for name, value in params.items()},
            "outs": content["outs"],
        }

    before, after = flat(inputs), flat(recorded)
    for name in dict.fromkeys([*before, *after]):
        values = [json.dumps(side.get(name), sort_keys=True) for side in (before, after)]
        if values[0] != values[1]:
            yield f"{name}: {values[0]} before, {values[1]} recorded"


def _messages(stage: str, error: BaseException) -> Iterator[str]:
    """The error and its causes, the first cause first."""
    if error.__cause__ is not None:
        yield from _messages(stage, error.__cause__)
    yield f"{stage}: {error}" if isinstance(error, LoradagError) else str(error)


@contextmanager
def _lock(cache: Path, stage: str, key: str | None) -> Iterator[None]:
    """Hold the lock of a stage's inputs, next to the cache that the result goes to."""
    from filelock import SoftFileLease, Timeout

    if key is None:
        yield
        return
    locks = cache / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    # A file that its holder touches, no lock of the kernel's: some network disks have none, others
    # keep those of a host that has died.
    lock = SoftFileLease(locks / f"{key}.lock", lease_duration=LEASE, poll_interval=0.2)
    owner = locks / f"{key}.json"
    try:
        lock.acquire(timeout=1)  # in which a lock that was left on this host is found to be stale
    except Timeout:
        waiting = f"waits for {stage}: {_owner(owner)} runs it for the same inputs ({key})"
        print(waiting, flush=True)
        Path(WAITING).write_text(waiting, encoding="utf-8")
        lock.acquire()
        Path(WAITING).unlink()
    try:
        write_json(owner, {"host": socket.gethostname(), "pid": os.getpid(), "in": os.getcwd()})
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    """Who holds a lock, as far as it has written that down."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return "another process"
    return f"process {owner['pid']} on {owner['host']} in {owner['in']}"


if __name__ == "__main__":
    end_with_parent(group=True)  # with the stage that it runs
    sys.exit(0 if execute(*map(Path, sys.argv[1:])) else 1)
