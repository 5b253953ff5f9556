"""Random sequences of runs, sweeps, edits and kills on one cache, against runs without a cache.

    python -m benchmarks.cache_differential [SEQUENCES] [--real]

Each sequence is of up to ten steps in two clones (`tests/sweeps/differential.py`), other ones each
time; `--real`: the real stages on the tiny model, minutes a sequence, instead of a toy pipeline's.
Prints how many sequences ended in the reports of cold runs, and ends at the first that does not.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test
from mlflow import MlflowClient

from tests.sweeps.differential import SETTINGS, Differential, RealDifferential


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sequences", nargs="?", type=int, default=50)
    parser.add_argument("--real", action="store_true")
    arguments = parser.parse_args()
    machine: type[Differential] = RealDifferential if arguments.real else Differential
    finished, started = 0, time.perf_counter()

    class Counted(machine):  # type: ignore[misc, valid-type]
        def teardown(self) -> None:
            nonlocal finished
            super().teardown()
            finished += 1
            print(f"{finished} sequences, {time.perf_counter() - started:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{Path(folder)}/mlflow.db"
        MlflowClient().search_experiments()  # creates the store
        profile = settings(SETTINGS, max_examples=arguments.sequences, stateful_step_count=10)
        run_state_machine_as_test(Counted, settings=profile)
    print(f"{finished} of {finished} sequences ended in the reports of cold runs")


if __name__ == "__main__":
    main()
