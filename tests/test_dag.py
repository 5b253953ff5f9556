"""The DAG in a real DVC repository on the tiny model: what reruns for which change.

One repository for the whole module, its tests in the order of a user's day: a cold run, a rerun, a
change, and back.
"""

import json
import re
import shlex

import pytest
import yaml

from loradag.planning.disk import stage_bytes
from loradag.planning.parameters import model_shape
from loradag.reporting.terminal import NEXT
from tests.repository import Repository

ALL = [
    "fetch", "source", "prepare", "quantize", "baseline", "train", "evaluate", "merge", "export",
    "report",
]  # fmt: skip


def executed(output: str) -> list[str]:
    return re.findall(r"^Running stage '(\w+)':", output, re.MULTILINE)


def repro(repository: Repository) -> list[str]:
    """Reproduce; the stages that were executed, in order."""
    return executed(repository.run("dvc", "repro"))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


def test_a_cold_run_runs_every_stage_once(repository) -> None:
    assert sorted(repro(repository)) == sorted(ALL)
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "Run")
    reports = {stage: json.loads((repository.root / f"reports/{stage}.json").read_text())
               for stage in ALL[:-1]}  # fmt: skip
    assert reports["fetch"]["parameters"] == 139_584
    assert reports["merge"]["passed"]
    (run,) = repository.runs()
    assert {run.data.tags[f"stage.{stage}"] for stage in ALL[:-1]} == {"ran"}


def test_a_second_run_runs_nothing(repository) -> None:
    assert repro(repository) == []


def test_the_plan_knows_time_and_disk_from_the_first_run(repository) -> None:
    stages = ("train", "evaluate", "merge", "export")
    reports = [json.loads((repository.root / f"reports/{s}.json").read_text()) for s in stages]
    taken = sum(report["seconds"] for report in reports)
    output = repository.run("python", "-m", "stages.plan", "experiment=smoke", "adapter.r=4")
    found = re.search(r"^Takes about (?:(\d+) min )?([\d.]+) s, one stage", output, re.M)
    assert found, output
    assert int(found[1] or 0) * 60 + float(found[2]) == pytest.approx(taken, abs=1, rel=0.1)
    assert re.search(r"^Stores about [\d.]+ [kM]B in the cache.$", output, re.M)


@pytest.mark.parametrize("stage", ["fetch", "quantize", "train", "merge", "export"])
def test_the_plan_estimates_what_a_stage_stores(repository, stage: str) -> None:
    folder = {"fetch": "base", "quantize": "quantized", "train": "adapter", "merge": "merged",
              "export": "export"}[stage]  # fmt: skip
    files = [*(repository.root / "artifacts" / folder).rglob("*.safetensors")]
    files += (repository.root / "artifacts" / folder).rglob("*.gguf")
    params = yaml.safe_load((repository.root / "params.yaml").read_text())
    shape = model_shape(params["model"])
    assert shape is not None
    stored = sum(file.stat().st_size for file in files)
    assert stage_bytes(stage, shape, params) == pytest.approx(
        stored, rel=0.1, abs=80_000
    )  # a GGUF has the vocabulary, too


def test_another_rank_reruns_training_and_what_follows(repository) -> None:
    repository.compose("adapter.r=4")
    assert repro(repository) == ["train", "evaluate", "merge", "export", "report"]
    diff = json.loads(repository.run("dvc", "metrics", "diff", "--json"))
    trained = diff["reports/train.json"]["trainable_parameters"]
    assert trained["new"] * 2 == trained["old"]
    params = json.loads(repository.run("dvc", "params", "diff", "--json"))
    assert params["params.yaml"]["adapter.r"] == {"old": 8, "new": 4, "diff": -4}


def test_back_to_a_value_used_before_all_comes_from_the_cache_and_mlflow_is_complete(
    repository,
) -> None:
    repository.compose()
    assert repro(repository) == ["report"]
    newest, _, first = repository.runs()
    assert newest.data.params == first.data.params
    assert newest.data.metrics == first.data.metrics
    assert {newest.data.tags[f"stage.{stage}"] for stage in ALL[:-1]} == {"cached"}
    assert newest.data.tags["dvc.lock"] == first.data.tags["dvc.lock"]
    assert newest.info.status == "FINISHED"


def test_another_export_reruns_only_the_export(repository) -> None:
    repository.compose("export=safetensors")
    assert repro(repository) == ["export", "report"]


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
    assert repro(repository) == ["report"]  # nothing is lost: the cache has it all


def test_experiments_and_plots_are_what_a_dvc_user_expects(repository) -> None:
    output = repository.run("dvc", "exp", "run", "-S", "experiment=smoke", "-S", "adapter.r=4")
    assert executed(output) == ["report"]  # the rest was run before
    shown = repository.run("dvc", "exp", "show", "--csv")
    assert "reports/train.json:trainable_parameters" in shown or "trainable_parameters" in shown
    assert "evaluate.json:adapter.perplexity" in shown or "adapter.perplexity" in shown
    assert "train" in repository.run("dvc", "dag", "--dot")
    plots = repository.run("dvc", "plots", "show", "--json")
    assert "loss.csv" in plots


def test_the_experiment_that_a_run_suggests_changes_its_key_alone(repository) -> None:
    path = repository.root / "params.yaml"
    before = yaml.safe_load(path.read_text())
    assert before["adapter"]["r"] == 4
    suggested = shlex.split(NEXT[0][0].replace("r=16", "r=8"))
    assert executed(repository.run(*suggested)) == ["report"]  # the rest was run before
    before["adapter"]["r"] = 8
    assert yaml.safe_load(path.read_text()) == before
