"""How often each stage really runs, counted by the stages themselves."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.sweeps.conftest import Toy
from tests.sweeps.toy import STAGES

PARALLEL = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
SUBMITIT = pytest.param(("hydra/launcher=submitit_local",), marks=pytest.mark.slow, id="submitit")


def test_every_distinct_input_runs_once(toy: Toy) -> None:
    grid = ("adapter.r=4,8", "quantize=nf4,int8")
    code, output = toy.sweep(*grid, *PARALLEL)
    assert code == 0, output
    cold = {"prepare": 1, "quantize": 2, "train": 4, "evaluate": 4, "report": 4}
    assert toy.ran() == cold  # in parallel from a cold cache
    assert not list(toy.root.glob("multirun/*/*/workspace"))
    assert (toy.root / "sweep.html").exists()

    code, output = toy.sweep(*grid, "sweep.keep=all")
    assert code == 0, output
    assert toy.ran() == {"report": 4}  # warm
    linked = [
        path.stat().st_nlink for path in toy.root.glob("multirun/*/*/workspace/artifacts/*/*")
    ]
    assert len(linked) == 8
    assert min(linked) > 1  # links into the cache, not copies

    parents, children = toy.runs()
    assert [run.info.status for run in parents] == ["FINISHED"]  # continued, not doubled
    assert len(children) == 4
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    swept = {(run.data.tags["adapter.r"], run.data.tags["quantize"]) for run in children}
    assert swept == {("4", "nf4"), ("4", "int8"), ("8", "nf4"), ("8", "int8")}
    assert {run.info.status for run in children} == {"FINISHED"}

    code, output = toy.sweep("adapter.r=4,8,16", "quantize=nf4,int8")
    assert toy.ran() == {"train": 2, "evaluate": 2, "report": 6}  # a rank more

    command = re.search(r"python -m conf (.+) && dvc repro", output)
    assert command, output
    assert command[1] == "adapter.r=16 quantize=int8"
    assert toy.run("conf", *command[1].split())[0] == 0
    assert toy.run("dvc", "repro")[0] == 0
    assert toy.ran() == {"merge": 1, "export": 1, "report": 1}  # the rest comes from the cache


def test_a_failed_job_is_reported_and_only_it_runs_again(toy: Toy) -> None:
    code, output = toy.sweep("adapter.r=4,8,16", "sweep.keep=failed", TOY_FAILS_AT="8")
    assert code == 1
    assert "#1 adapter.r=8 failed: train: out of memory. Lower train.batch_size." in output
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 3, "evaluate": 2, "report": 2}
    kept = list(toy.root.glob("multirun/*/*/workspace"))
    assert [path.parent.name for path in kept] == ["1"]
    parents, children = toy.runs()
    assert [run.info.status for run in parents] == ["FAILED"]
    assert sorted(run.info.status for run in children) == ["FAILED", "FINISHED", "FINISHED"]

    code, output = toy.sweep("adapter.r=4,8,16", "sweep.keep=failed")
    assert code == 0, output
    assert toy.ran() == {"train": 1, "evaluate": 1, "report": 3}
    parents, children = toy.runs()
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert [run.info.status for run in children] == ["FINISHED"] * 3


@pytest.mark.parametrize("launcher", [pytest.param(PARALLEL, id="joblib"), SUBMITIT])
def test_a_killed_sweep_continues_where_it_was(launcher: tuple[str, ...], toy: Toy) -> None:
    process = toy.start("stages.sweep", "-m", "adapter.r=4,8", *launcher, TOY_SECONDS="8")
    wait_for(toy.log, "train", times=2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.communicate(timeout=120)  # until the last of its workers has ended
    ran = toy.ran()
    assert ran == {"prepare": 1, "quantize": 1, "train": 2}

    time.sleep(3)  # its stages end with it: no evaluate comes
    assert not toy.ran()
    code, output = toy.sweep("adapter.r=4,8")
    assert code == 0, output
    assert toy.ran() == {"train": 2, "evaluate": 2, "report": 2}
    parents, children = toy.runs()
    assert (len(parents), len(children)) == (1, 2)


@pytest.mark.parametrize(
    "launcher", [pytest.param((), id="basic"), pytest.param(PARALLEL, id="joblib"), SUBMITIT]
)
def test_a_sweep_stopped_by_ctrl_c_says_how_to_go_on(launcher: tuple[str, ...], toy: Toy) -> None:
    sweep = ("adapter.r=4,8", *launcher)
    process = toy.start("stages.sweep", "-m", *sweep, TOY_SECONDS="30")
    wait_for(toy.log, "train", times=1 + bool(launcher))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "Stopped. The same command continues" in output
    if "hydra/launcher=submitit_local" not in launcher:  # its own processes print theirs
        assert "Traceback" not in output
    assert "0 of 2 jobs done" in (toy.root / "sweep.html").read_text()
    parents, children = toy.runs()
    assert {run.info.status for run in [*parents, *children]} == {"KILLED"}
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 1 + bool(launcher)}

    code, output = toy.sweep(*sweep)
    assert code == 0, output
    assert toy.ran() == {"train": 2, "evaluate": 2, "report": 2}
    parents, children = toy.runs()
    assert [run.info.status for run in [*parents, *children]] == ["FINISHED"] * 3


def test_jobs_that_break_a_rule_are_listed_before_anything_runs(toy: Toy) -> None:
    code, output = toy.sweep("adapter=lora,pissa", "quantize=nf4,none")
    assert code == 1
    before = output[: output.index("Launching")]
    assert "1 of 4 jobs break the rules" in before
    assert "adapter.variant = 'pissa': " in before
    assert toy.ran()["report"] == 3
    assert "#2 adapter=pissa quantize=nf4 failed" in output[len(before) :]


def test_nothing_runs_when_a_job_cannot_be_composed(toy: Toy) -> None:
    code, output = toy.sweep("quantize=nf4,nf5,nf6")
    assert code == 1
    assert "2 of 3 jobs cannot be composed, so none runs" in output
    assert "quantize=nf5" in output
    assert "quantize=nf6" in output
    assert "Traceback" not in output
    assert not toy.ran()


def test_the_plan_ends_with_the_command_that_runs_it(toy: Toy) -> None:
    code, output = toy.run("stages.plan", "-m", "adapter.r=choice(4, 8)")
    assert code == 0, output
    command = output.rstrip().splitlines()[-1].removeprefix("Run it: ")
    assert command == "python -m stages.sweep -m 'adapter.r=choice(4, 8)'"


def test_nothing_runs_with_a_cache_that_cannot_be_written(toy: Toy) -> None:
    (toy.root / "file").write_text("")
    with (toy.root / ".dvc/config").open("a") as config:
        config.write("[cache]\ndir = ../file/cache\n")
    code, output = toy.sweep("adapter.r=4,8")
    assert code == 1
    cache = f"{toy.root / 'file/cache'} cannot be written to: Not a directory"
    assert f"sweep: the DVC cache {cache}" in output
    assert "Traceback" not in output
    assert not toy.ran()


def test_without_m_it_is_one_run_in_place(toy: Toy) -> None:
    code, output = toy.run("stages.sweep", "adapter.r=4")
    assert code == 0, output
    assert toy.ran() == dict.fromkeys((*STAGES, "report"), 1)
    assert (toy.root / "artifacts/adapter/adapter.safetensors").exists()
    assert "r: 4\n" in (toy.root / "params.yaml").read_text()
    code, output = toy.run("stages.sweep", "adapter.rank=4")
    assert code == 1
    assert "adapter.rank" in output
    assert not toy.ran()


def test_runs_that_were_deleted_in_mlflow_are_made_anew(toy: Toy) -> None:
    sweep = ("adapter.r=4,8",)
    assert toy.sweep(*sweep)[0] == 0
    (parent,), children = toy.runs()
    (deleted,) = (run for run in children if run.data.tags["adapter.r"] == "8")
    client = MlflowClient(toy.store)
    for run in (parent, deleted):
        client.delete_run(run.info.run_id)
    code, output = toy.sweep(*sweep)
    assert code == 0, output
    (new,), children = toy.runs()
    assert {run.data.tags["adapter.r"] for run in children} == {"4", "8"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {new.info.run_id}


@pytest.mark.slow
def test_three_by_two_by_two_in_parallel(toy: Toy) -> None:
    grid = ("adapter.r=4,8,16", "adapter.alpha=8,16", "quantize=nf4,int8")
    code, output = toy.sweep(*grid, *PARALLEL)
    assert code == 0, output
    cold = {"prepare": 1, "quantize": 2, "train": 12, "evaluate": 12, "report": 12}
    assert toy.ran() == cold
    assert toy.sweep(*grid, *PARALLEL)[0] == 0
    assert toy.ran() == {"report": 12}


@pytest.mark.slow
def test_submitit_on_this_machine(toy: Toy) -> None:
    code, output = toy.sweep("adapter.r=4,8", "quantize=nf4,int8", "hydra/launcher=submitit_local")
    assert code == 0, output
    cold = {"prepare": 1, "quantize": 2, "train": 4, "evaluate": 4, "report": 4}
    assert toy.ran() == cold


def wait_for(log: Path, stage: str, times: int) -> None:
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_text().split().count(stage) < times:
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "nothing ran"
        time.sleep(0.1)
