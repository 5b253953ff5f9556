"""The plan against what then happens."""

import subprocess
import sys
from pathlib import Path

import pytest

from loradag.config.composition import compose, write_params
from tests.sweeps.conftest import Toy
from tests.sweeps.conftest import store as store
from tests.sweeps.conftest import toy as toy


def test_the_plan_is_what_then_runs(toy: Toy) -> None:
    grid = ("adapter.r=4,8", "quantize=nf4,int8")
    code, output = toy.run("stages.plan", "-m", *grid)
    assert code == 0, output
    assert "15 stage runs of 20: prepare 1, quantize 2, train 4, evaluate 4, report 4." in output
    assert not toy.ran()
    code, output = toy.sweep(*grid)
    assert code == 0, output
    assert sum(toy.ran().values()) == 15
    _, output = toy.run("stages.plan", "-m", "adapter.r=4,8,16", "quantize=nf4,int8")
    assert "10 stage runs of 30: train 2, evaluate 2, report 6." in output
    _, output = toy.run("stages.plan", "adapter.r=8", "quantize=int8")
    assert "3 stage runs of 7: merge 1, export 1, report 1." in output


def test_without_overrides_it_is_the_plan_of_params_yaml(toy: Toy) -> None:
    code, output = toy.run("stages.plan")
    assert code == 1
    assert "is not there" in output
    write_params(compose(["adapter.r=8", "quantize=int8"]), toy.root)
    _, planned = toy.run("stages.plan")
    _, given = toy.run("stages.plan", "adapter.r=8", "quantize=int8")
    *table, command = planned.splitlines()
    assert table == given.splitlines()[:-1]
    assert command == "Run it: dvc repro"


def test_several_values_without_a_multirun_are_refused(toy: Toy) -> None:
    code, output = toy.run("stages.plan", "adapter.r=4,8")
    assert code == 1
    assert "adapter.r has several values" in output


def test_a_broken_rule_and_an_unknown_key_are_reported(toy: Toy) -> None:
    code, output = toy.run("stages.plan", "adapter.r=0")
    assert code == 1
    assert "adapter.r = 0: must be from 1 to 4096" in output
    code, output = toy.run("stages.plan", "-m", "adapter.r=4,8", "adapter.rank=4")
    assert code == 1
    assert "adapter.rank" in output
    assert "Traceback" not in output


def test_the_plan_imports_nothing_heavy_where_no_run_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    code = (
        "import sys; from stages.plan import plan; plan(['-m', 'adapter.r=4,8']);"
        "heavy = {'torch', 'transformers', 'mlflow', 'dvc.repo', 'scipy', 'pandas'};"
        "sys.exit(', '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout
    assert "MLflow has no run of this model yet" in done.stdout
    assert not (tmp_path / "mlflow.db").exists()
