"""Kill `dvc repro` at random moments, rerun it, and compare everything with an undisturbed run.

    nice python -m benchmarks.kill_rounds [--rounds 50] [--seed 0] [--from STAGE]

A round starts with an empty store and an empty cache (or with what STAGE and the stages before it
have made), starts `dvc repro` on the random model of 139,584 parameters, and kills it with its
stage (SIGKILL to the process group) one to three times. The last run must succeed. Then the bytes
of every artifact, the curves, the reports (apart from times and memory) and the MLflow record are
those of the undisturbed run. Prints a line a round, and the count at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from tests.repository import Repository

OVERRIDES = (
    "train.max_steps=6", "train.eval_steps=2", "train.checkpoint_steps=2", "evaluate.samples=1",
    "merge.rows=2", "export=safetensors", "export.rows=1",
)  # fmt: skip
# What may differ between two runs of the same: times, memory, and where a training was resumed.
VOLATILE = ("seconds", "per_second", "peak_", "resumed_from_step")


def record(root: Path) -> dict[str, Any]:
    """Everything that a pipeline run leaves behind, without what is volatile."""
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    outs = {
        out["path"]: out["md5"]
        for stage in lock.values()
        for out in stage.get("outs", [])
        if not out["path"].startswith(("reports/", "report.html"))
    }
    reports = {
        path.name: _stable(json.loads(path.read_text()))
        for path in sorted((root / "reports").glob("*.json"))
    }
    return {"outs": outs, "reports": reports, "mlflow": _mlflow(root)}


def _stable(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: _stable(value)
            for key, value in tree.items()
            if not any(word in key for word in VOLATILE)
        }
    return [_stable(value) for value in tree] if isinstance(tree, list) else tree


def _mlflow(root: Path) -> list[Any]:
    """Of every run: status, params, stage tags, metrics, the curves, the files."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("loradag")
    runs = []
    for run in client.search_runs([experiment.experiment_id]):
        data, id = run.data, run.info.run_id
        runs.append(
            {
                "status": run.info.status,
                "name": run.info.run_name,
                "params": data.params,
                "tags": {k: v for k, v in data.tags.items() if k.startswith(("stage.", "data"))},
                "metrics": _stable(data.metrics),
                "curves": {
                    name: [(p.step, p.value) for p in client.get_metric_history(id, name)]
                    for name in ("loss", "eval_loss", "learning_rate", "grad_norm")
                },
                "files": sorted(file.path for file in client.list_artifacts(id)),
            }
        )
    return runs


def differences(left: Any, right: Any, at: str = "") -> list[str]:
    """The paths at which two records differ."""
    if isinstance(left, dict) and isinstance(right, dict):
        found = []
        for key in sorted({*left, *right}):
            found += differences(left.get(key), right.get(key), f"{at}/{key}")
        return found
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = enumerate(zip(left, right, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{at}/{i}")]
    return [] if left == right else [f"{at}: {left!r:.200} is not {right!r:.200}"]


def clone(source: Path, target: Path) -> Repository:
    """A copy of a repository at another place, with a store of its own."""
    shutil.copytree(source, target, symlinks=True)
    repository = Repository.__new__(Repository)
    repository.root = target
    repository.environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(target),
        "MLFLOW_TRACKING_URI": f"sqlite:///{target}/mlflow.db",
    }
    return repository


def start_repro(repository: Repository) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["dvc", "repro"],
        cwd=repository.root,
        env=repository.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def stage_started(line: str) -> str | None:
    """The stage that DVC's line announces."""
    found = re.match(r"Running stage '(\w+)'", line)
    return found.group(1) if found else None


def run_undisturbed(repository: Repository) -> dict[str, float]:
    """Run to the end; the seconds that each stage took, with its start."""
    process, starts, output = start_repro(repository), [], []
    for line in process.stdout or []:
        output.append(line)
        if stage := stage_started(line):
            starts.append((stage, time.monotonic()))
    assert process.wait() == 0, "".join(output)
    ends = [*(at for _, at in starts[1:]), time.monotonic()]
    return {stage: end - at for (stage, at), end in zip(starts, ends, strict=True)}


def kill_in(repository: Repository, stage: str, delay: float) -> str | None:
    """Start `dvc repro`, and kill it with the stage that runs `delay` seconds into `stage`.

    Returns the stage that was killed; None where all was done before.
    """
    process, running = start_repro(repository), None
    for line in process.stdout or []:
        running = stage_started(line) or running
        if stage_started(line) == stage:
            break
    time.sleep(delay)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    for line in process.stdout or []:
        running = stage_started(line) or running
    process.wait()
    return running if alive else None


def run_rounds(rounds: int, seed: int, start: str | None, folder: Path) -> int:
    """Run `rounds` rounds in `folder`; returns how many passed. Stops at the first that fails."""
    random_ = random.Random(seed)
    template = Repository(folder / "template")
    template.compose(*OVERRIDES)
    if start:
        template.run("dvc", "repro", start)
        shutil.rmtree(template.root / ".loradag", ignore_errors=True)
    undisturbed = clone(template.root, folder / "undisturbed")
    seconds = run_undisturbed(undisturbed)
    expected = record(undisturbed.root)
    print(f"undisturbed: {', '.join(f'{s} {t:.0f} s' for s, t in seconds.items())}", flush=True)
    for number in range(1, rounds + 1):
        repository = clone(template.root, folder / str(number))
        stages = sorted(
            random_.sample(list(seconds), random_.randint(1, 3)), key=list(seconds).index
        )
        moments = [(stage, random_.uniform(0, seconds[stage])) for stage in stages]
        killed = [f"{delay:.1f} s after {stage} began, in {hit}" for stage, delay in moments
                  if (hit := kill_in(repository, stage, delay))]  # fmt: skip
        rwlock = repository.root / ".dvc/tmp/rwlock"
        if rwlock.exists() and not rwlock.stat().st_size:
            rwlock.unlink()  # as `make repro` does: DVC writes it in place
        output = repository.run("dvc", "repro")
        found = differences(expected, record(repository.root))
        print(
            f"round {number}: killed {'; '.join(killed) or 'never'}: "
            f"{'same' if not found else 'DIFFERENT'}",
            flush=True,
        )
        if found:
            print("\n".join(found), output, sep="\n", flush=True)
            return number - 1
        shutil.rmtree(repository.root)
    return rounds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from", dest="start", help="the stage whose outs a round starts with")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        passed = run_rounds(arguments.rounds, arguments.seed, arguments.start, Path(name))
    print(f"{passed} of {arguments.rounds} rounds passed")
    sys.exit(passed < arguments.rounds)
