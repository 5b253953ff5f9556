"""Parallel sweeps in two clones on one cache, at once and with kills: what is lost or done twice.

    python -m benchmarks.cache_races [ROUNDS] [--real] [--jobs JOBS]

In each round both clones start the same sweep of eight new jobs at once. In every second round one
of the two is killed (-9) at a random moment, and started again. Prints for each round how often
`train` ran and for how many distinct inputs, and in total the jobs whose reports differ from those
of a cold run, the jobs that are missing, and the trainings beyond those that a kill interrupted.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from itertools import product
from pathlib import Path

from mlflow import MlflowClient

from loradag.comparison.job_records import JobRecord
from tests.sweeps.differential import Clone, RealClone, composed, repeatable

RANKS, SCHEMES = ("2", "4", "8", "16"), ("nf4", "int8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=20)
    parser.add_argument("--real", action="store_true")
    parser.add_argument("--jobs", type=int, default=4, help="at once in each of the two sweeps")
    arguments = parser.parse_args()
    kind = RealClone if arguments.real else Clone
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        store = f"sqlite:///{place}/mlflow.db"
        MlflowClient(store).search_experiments()  # creates it
        clones = [kind(place / name, place / "cache", store) for name in "ab"]
        totals = [run_round(clones, number, arguments.jobs) for number in range(arguments.rounds)]
        counts = [sum(column) for column in zip(*totals, strict=True)]
        names = ("jobs", "kills", "trainings", "missing", "stale", "needless trainings")
        print("total: " + ", ".join(f"{n} {c}" for n, c in zip(names, counts, strict=True)))


def run_round(clones: list[Clone], number: int, at_once: int) -> tuple[int, ...]:
    overrides = [
        f"adapter.r={','.join(RANKS)}", f"quantize={','.join(SCHEMES)}", f"seed={number}",
        "hydra/launcher=joblib", f"hydra.launcher.n_jobs={at_once}",
    ]  # fmt: skip
    grid = set(product(RANKS, SCHEMES))
    command = ["stages.sweep", "-m", *clones[0].base, *overrides]
    for clone in clones:
        clone.ran()
    processes = [clone.start(*command, TOY_SECONDS="0.5") for clone in clones]
    kills = number % 2
    if kills:
        victim = number // 2 % 2
        time.sleep(random.uniform(3, 15))
        os.kill(processes[victim].pid, signal.SIGKILL)
        # Not `communicate`: a worker of joblib that had received half a job keeps the output open.
        processes[victim].wait()
        processes[victim] = clones[victim].start(*command)
    for process in processes:
        output, _ = process.communicate(timeout=3000)
        assert process.returncode == 0, output
    missing = stale = 0
    for clone in clones:
        sweeps = sorted(clone.root.glob("multirun/*/sweep.json"), key=lambda p: p.stat().st_mtime)
        jobs = [JobRecord.read(path.parent) for path in sweeps[-1].parent.glob("*/job.json")]
        found = {(job.swept["adapter.r"], job.swept["quantize"]) for job in jobs}
        missing += len(grid - found)
        for job in jobs:
            expected = clone.cold_reports(composed(*job.overrides))
            stale += any(repeatable(r) != expected[stage] for stage, r in job.reports.items())
    ran = sum((clone.ran() for clone in clones), start=Counter())
    # A kill interrupts at most the trainings that its sweep was in.
    needless = max(0, ran["train"] - len(grid) - kills * at_once)
    print(
        f"round {number}: {ran['train']} trainings of {len(grid)} distinct inputs"
        + (", a sweep killed" if kills else ""),
        flush=True,
    )
    return 2 * len(grid), kills, ran["train"], missing, stale, needless


if __name__ == "__main__":
    main()
