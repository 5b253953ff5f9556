import logging
import threading
import time
from pathlib import Path

import pytest

from loradag.planning.grid import composer
from loradag.sweeps.gpus import claim_gpu, visible_gpus
from loradag.sweeps.lifecycle import _gpus
from tests.sweeps.conftest import make_toy
from tests.sweeps.test_sweep import PARALLEL, SUBMITIT

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`nvidia-smi` of a machine with two GPUs."""
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\n'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("launcher", [pytest.param(PARALLEL, id="joblib"), SUBMITIT])
def test_each_job_sees_one_gpu(launcher: tuple[str, ...], tmp_path: Path, store: str) -> None:
    toy = make_toy(tmp_path / "project", store)
    code, output = toy.sweep("adapter.r=4,8", *launcher, TOY_SECONDS="4")
    assert code == 0, output
    seen = Path(f"{toy.log}.gpus").read_text().split()
    assert sorted(seen) == ["GPU-a", "GPU-b"]


@pytest.mark.usefixtures("driver")
def test_the_gpus_are_those_that_the_user_left_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    assert visible_gpus() == ["GPU-a", "GPU-b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 3")
    assert visible_gpus() == ["1", "3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize(
    ("overrides", "divided"),
    [
        ([], False),  # one after the other: each has all
        (JOBLIB, True),
        (["hydra/launcher=submitit_local"], True),
        (["hydra/launcher=submitit_slurm"], False),  # SLURM gives each job its own
        ([*JOBLIB, "runtime.device=cpu"], False),
    ],
)
def test_jobs_at_once_on_a_machine_divide_its_gpus(overrides: list[str], divided: bool) -> None:
    with composer() as compose:
        gpus = _gpus(compose.master(overrides), jobs=4)
    assert gpus == (["GPU-a", "GPU-b"] if divided else [])


def test_no_two_jobs_have_the_same_gpu_and_a_third_waits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    running: set[str] = set()
    together: list[set[str]] = []

    def job(number: int) -> None:
        with claim_gpu(["0", "1"], f"#{number}", tmp_path) as gpu:
            assert gpu not in running
            running.add(str(gpu))
            together.append(set(running))
            time.sleep(0.3)
            running.remove(str(gpu))

    with caplog.at_level(logging.INFO):
        jobs = [threading.Thread(target=job, args=(number,)) for number in range(3)]
        for thread in jobs:
            thread.start()
        for thread in jobs:
            thread.join()
    assert max(map(len, together)) == 2
    assert len(together) == 3
    assert "waits for a GPU: other jobs use 0, 1" in caplog.text
    with claim_gpu([], "#0", tmp_path) as gpu:
        assert gpu is None
