"""Sweeps and trainings through a real SLURM: a cluster of one node, started for the test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loradag.config.composition import compose, write_params
from tests.conftest import ROOT
from tests.sweeps import slurm
from tests.sweeps.conftest import Toy
from tests.sweeps.test_pipeline import Counted
from tests.training.conftest import copied

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm.is_installed(), reason="SLURM is not installed, or no root"),
]
LAUNCHER = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=test")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What SLURM's commands need in the environment."""
    with slurm.cluster(tmp_path_factory.mktemp("cluster") / "slurm") as environment:
        yield {name: environment[name] for name in ("SLURM_CONF",)}


def test_no_stage_runs_twice_in_jobs_of_slurm(cluster: dict[str, str], toy: Toy) -> None:
    grid = ("adapter.r=4,8", "quantize=nf4,int8", *LAUNCHER, "hydra.launcher.timeout_min=10")
    code, output = toy.sweep(*grid, **cluster)
    assert code == 0, output
    cold = {"prepare": 1, "quantize": 2, "train": 4, "evaluate": 4, "report": 4}
    assert toy.ran() == cold
    code, output = toy.sweep(*grid, **cluster)
    assert code == 0, output
    assert toy.ran() == {"report": 4}
    parents, children = toy.runs()
    assert (len(parents), len(children)) == (1, 4)


def test_a_job_that_reaches_its_time_limit_is_resumed(
    cluster: dict[str, str], tmp_path: Path
) -> None:
    """SLURM counts in minutes: the training takes longer than the first of them leaves it."""
    for name in ("project", "counting"):
        (tmp_path / name).mkdir()
    counted = Counted(tmp_path / "project", tmp_path / "counting")
    counted.environment |= cluster
    counted.sweep("adapter.r=2")  # so that the cache has the other stages
    counted.ran()
    counted.sweep(
        "train.max_steps=600", "train.checkpoint_steps=10", "adapter.r=2", *LAUNCHER,
        "hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20",
        "hydra.launcher.max_num_timeout=20",
    )  # fmt: skip
    ran = counted.ran()
    assert ran["train"] > 1, "the training was faster than the limit"
    assert set(ran) == {"train", "evaluate", "report"}  # the limit may meet those after it, too
    jobs = [json.loads(path.read_text()) for path in counted.root.glob("multirun/*/*/job.json")]
    (job,) = [job for job in jobs if "train.max_steps=600" in job["overrides"]]
    assert job["failure"] is None
    assert job["reports"]["train"]["resumed_from_step"] > 0
    assert job["reports"]["train"]["steps"] == 600


def test_a_training_over_two_tasks_is_that_of_one(
    cluster: dict[str, str], trained, tmp_path: Path
) -> None:
    """Each task launches its process. On one node their numbers are those of the tasks."""
    curves = []
    for name, tasks in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        paths, _ = copied(trained, tmp_path / name)
        launch = ["launch=ddp", "launch.processes=2", "launch.machines=2"] if tasks == 2 else []
        options = ["train.dtype=float32", "train.max_steps=6", "adapter.dropout=0"]
        write_params(compose(["experiment=smoke", *options, *launch]), paths.root)
        finished = subprocess.run(
            ["srun", f"--ntasks={tasks}", "--cpus-per-task=1", "bash", "-c",
             f"NODE_RANK=$SLURM_PROCID exec {sys.executable} -m stages.train"],
            cwd=paths.root, capture_output=True, text=True, timeout=600,
            env=os.environ | cluster | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "localhost",
                                        "MASTER_PORT": str(slurm.free_port())},
        )  # fmt: skip
        assert finished.returncode == 0, finished.stderr
        report = json.loads(paths.report("train").read_text())
        assert report["processes"] == tasks
        curves.append([float(line.split(",")[1]) for line in paths.loss.read_text().split()[1:]])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
