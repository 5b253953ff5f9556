import os
import subprocess
import sys
from pathlib import Path

import pytest

from loradag.comparison.job_records import SweepRecord

WORKER = """
import os, sys, time
from pathlib import Path
from loradag.comparison.job_records import SweepRecord
from loradag.sweeps.job import _end_with_sweep
folder = Path(sys.argv[1])
if sys.argv[2:]:  # it is the sweep itself
    sweep = SweepRecord.read(folder)
    sweep.pid = os.getpid()
    sweep.write(folder)
_end_with_sweep(folder)
print("ready", flush=True)
time.sleep(3)
print("outlived", flush=True)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


def record(folder: Path, pid: int, local: bool = True) -> None:
    SweepRecord(
        key="k", name="sweep", pid=pid, local=local, project=str(folder), cache=str(folder),
        swept=[], planned=1, run_id="", threads=None, gpus=[], remote=False,
    ).write(folder)  # fmt: skip


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def outlives(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return "outlived" in process.stdout.read()  # until all that have the pipe have ended


@pytest.mark.parametrize("is_sweep", [False, True])
def test_workers_end_with_their_sweep_and_a_sweep_outlives_its_shell(
    is_sweep: bool, tmp_path: Path
) -> None:
    record(tmp_path, pid=os.getpid())
    parent = start("-c", PARENT, "-c", WORKER, str(tmp_path), *["sweep"] * is_sweep)
    parent.kill()
    assert outlives(parent) == is_sweep


@pytest.mark.parametrize("local", [True, False])
def test_a_job_of_another_process_ends_with_its_sweep_on_the_same_host(
    local: bool, tmp_path: Path
) -> None:
    with subprocess.Popen(["sleep", "60"]) as sweep:
        record(tmp_path, sweep.pid, local)
        worker = start("-c", WORKER, str(tmp_path))
        sweep.kill()
    assert outlives(worker) != local


def test_a_job_ends_when_its_sweep_was_started_again(tmp_path: Path) -> None:
    record(tmp_path, pid=os.getpid(), local=False)
    worker = start("-c", WORKER, str(tmp_path))
    record(tmp_path, pid=os.getpid() + 1, local=False)
    assert not outlives(worker)
