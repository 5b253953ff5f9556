"""The DAG in a real DVC repository on the tiny model: what reruns for which change.

One repository for the whole module, its tests in the order of a user's day: a cold run, a rerun, a
change, and back.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

ALL = ["fetch", "prepare", "quantize", "train", "evaluate", "merge", "export", "report"]


class Repository:
    """A git and DVC repository of the project, with commands that run in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def compose(self, *overrides: str) -> None:
        self.run("python", "-m", "conf", "experiment=smoke", *overrides)

    def repro(self) -> list[str]:
        """Reproduce; the stages that were executed, in order."""
        return executed(self.run("dvc", "repro"))

    def runs(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        experiment = client.get_experiment_by_name("loradag")
        return client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])


def executed(output: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)':", output, re.MULTILINE)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("repository")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("reports/", "plots/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)
    repository = Repository(root)
    repository.compose()
    repository.run("git", "init", "-q")
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "Start")
    return repository


def test_a_cold_run_runs_every_stage_once(repository) -> None:
    assert repository.repro() == ALL
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "Run")
    reports = {stage: json.loads((repository.root / f"reports/{stage}.json").read_text())
               for stage in ALL[:-1]}  # fmt: skip
    assert reports["fetch"]["parameters"] == 139_584
    assert reports["merge"]["passed"]
    (run,) = repository.runs()
    assert {run.data.tags[f"stage.{stage}"] for stage in ALL[:-1]} == {"ran"}


def test_a_second_run_runs_nothing(repository) -> None:
    assert repository.repro() == []


def test_another_rank_reruns_training_and_what_follows(repository) -> None:
    repository.compose("adapter.r=4")
    assert repository.repro() == ["train", "evaluate", "merge", "export", "report"]
    diff = json.loads(repository.run("dvc", "metrics", "diff", "--json"))
    trained = diff["reports/train.json"]["trainable_parameters"]
    assert trained["new"] * 2 == trained["old"]
    params = json.loads(repository.run("dvc", "params", "diff", "--json"))
    assert params["params.yaml"]["adapter.r"] == {"old": 8, "new": 4, "diff": -4}


def test_back_to_a_value_used_before_all_comes_from_the_cache_and_mlflow_is_complete(
    repository,
) -> None:
    repository.compose()
    assert repository.repro() == ["report"]
    newest, _, first = repository.runs()
    assert newest.data.params == first.data.params
    assert newest.data.metrics == first.data.metrics
    assert {newest.data.tags[f"stage.{stage}"] for stage in ALL[:-1]} == {"cached"}
    assert newest.data.tags["dvc.lock"] == first.data.tags["dvc.lock"]
    assert newest.info.status == "FINISHED"


def test_another_export_reruns_only_the_export(repository) -> None:
    repository.compose("export=safetensors")
    assert repository.repro() == ["export", "report"]


def test_another_quantisation_leaves_the_data_alone(repository) -> None:
    repository.compose("quantize=int8")
    changed = json.loads(repository.run("dvc", "status", "--json"))
    assert "quantize" in changed
    assert not {"fetch", "prepare"} & set(changed)
    repository.compose("prepare.max_tokens=100")
    changed = json.loads(repository.run("dvc", "status", "--json"))
    assert "prepare" in changed
    assert not {"fetch", "quantize"} & set(changed)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["adapter.rank=4"], "rank"),
        (["adapter.r=four"], "Integer"),
        (["quantize=nf5"], "nf5"),
        (["adapter.r=0", "adapter.dropout=1.5"], "adapter.dropout = 1.5"),
        (["evaluate.window=512"], "model.context = 256"),
        (["adapter=none"], "quantize=none"),
    ],
)
def test_bad_input_is_refused_before_any_stage_does_work(repository, overrides, says) -> None:
    sets = [word for override in ("experiment=smoke", *overrides) for word in ("-S", override)]
    kept = [repository.root / name for name in ("artifacts", "data", "reports")]
    before = [sorted(folder.rglob("*")) for folder in kept]
    params = (repository.root / "params.yaml").read_text()
    output = repository.run("dvc", "exp", "run", *sets, fails=True)
    assert says in output
    assert "Traceback" not in output
    assert executed(output) == []
    assert [sorted(folder.rglob("*")) for folder in kept] == before
    assert (repository.root / "params.yaml").read_text() == params


def test_a_hand_edit_is_validated_too(repository) -> None:
    repository.compose()
    path = repository.root / "params.yaml"
    raw = yaml.safe_load(path.read_text())
    raw["train"]["learning_rat"] = raw["train"].pop("learning_rate")
    path.write_text(yaml.safe_dump(raw))
    output = repository.run("dvc", "repro", fails=True)
    assert "Did you mean train.learning_rate?" in output
    assert "Traceback" not in output
    repository.compose()
    assert repository.repro() == ["report"]  # nothing is lost: the cache has it all


def test_experiments_and_plots_are_what_a_dvc_user_expects(repository) -> None:
    output = repository.run("dvc", "exp", "run", "-S", "experiment=smoke", "-S", "adapter.r=4")
    assert executed(output) == ["report"]  # the rest was run before
    shown = repository.run("dvc", "exp", "show", "--csv")
    assert "reports/train.json:trainable_parameters" in shown or "trainable_parameters" in shown
    assert "evaluate.json:adapter.perplexity" in shown or "adapter.perplexity" in shown
    assert "train" in repository.run("dvc", "dag", "--dot")
    plots = repository.run("dvc", "plots", "show", "--json")
    assert "loss.csv" in plots
