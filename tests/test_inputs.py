"""Users' own rows and models: files outside the pipeline, and yet deps of it."""

import json
from pathlib import Path

import pytest

from loradag.config.composition import compose, plain
from loradag.config.inputs import common_path
from loradag.config.problems import ConfigError
from loradag.planning.pipeline import Pipeline, StageStatus
from tests.repository import Repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return Repository(tmp_path_factory.mktemp("repository"))


def write_rows(path: Path, count: int) -> None:
    rows = ({"prompt": f"What is {n}?", "completion": f"The number {n}."} for n in range(count))
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planned(repository: Repository, *overrides: str) -> dict[str, StageStatus]:
    params = plain(compose(["experiment=smoke", *overrides]))
    pipeline = Pipeline(repository.root, repository.root / ".dvc/cache")
    return {stage.name: stage.status for stage in pipeline.plan(params)}


def test_edited_rows_rerun_what_depends_on_them(repository) -> None:
    options = ["prepare=file", "prepare.path=rows/chat.jsonl", "prepare.eval_fraction=0.1"]
    file = repository.root / "rows/chat.jsonl"
    write_rows(file, 60)
    repository.compose(*options)
    repository.run("dvc", "repro", "prepare")
    report = repository.root / "reports/prepare.json"
    assert json.loads(report.read_text())["rows_in"] == 60
    assert planned(repository, *options)["prepare"] is StageStatus.CACHED

    write_rows(file, 70)
    status = planned(repository, *options)
    assert (status["fetch"], status["prepare"]) == (StageStatus.CACHED, StageStatus.RUNS)
    output = repository.run("dvc", "repro", "prepare")
    assert "Running stage 'prepare'" in output
    assert "Running stage 'fetch'" not in output
    assert json.loads(report.read_text())["rows_in"] == 70

    write_rows(file, 60)  # as they were: from the cache
    assert "Running stage" not in repository.run("dvc", "repro", "prepare")
    assert json.loads(report.read_text())["rows_in"] == 60

    file.unlink()
    output = repository.run("dvc", "repro", "prepare", fails=True)
    assert "rows/chat.jsonl" in output
    assert "Traceback" not in output
    write_rows(file, 60)  # DVC had removed the outs; nothing is lost
    assert "Running stage" not in repository.run("dvc", "repro", "prepare")
    assert json.loads(report.read_text())["rows_in"] == 60


def test_an_edited_model_is_fetched_again(repository) -> None:
    repository.compose()
    repository.run("dvc", "repro", "fetch")
    folder = repository.root / "own"
    (repository.root / "artifacts/base").rename(folder)
    repository.compose("model=local", "model.path=own")
    repository.run("dvc", "repro", "fetch")
    assert "Running stage" not in repository.run("dvc", "repro", "fetch")
    config = folder / "generation_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"temperature": 0.5}))
    assert "Running stage 'fetch'" in repository.run("dvc", "repro", "fetch")
    copied = repository.root / "artifacts/base/generation_config.json"
    assert json.loads(copied.read_text())["temperature"] == 0.5


@pytest.mark.parametrize(
    ("paths", "common"),
    [
        (["rows.jsonl"], "rows.jsonl"),
        (["rows/*.jsonl"], "rows"),
        (["rows/2024/a.jsonl", "rows/2025/*/b.csv"], "rows"),
        (["/data/a.jsonl", "/data/b.jsonl"], "/data"),
        (["a.jsonl", f"{Path.cwd()}/rows/b.jsonl"], str(Path.cwd())),
    ],
)
def test_several_files_are_one_dep(paths: list[str], common: str) -> None:
    assert common_path(paths) == common


@pytest.mark.parametrize("path", ["*.jsonl", "data/*.jsonl", "data/prepared/x", "artifacts"])
def test_what_the_stages_write_is_no_input(path: str) -> None:
    with pytest.raises(ConfigError, match=r"prepare\.path = .*the pipeline writes to"):
        compose(["prepare=file", f"prepare.path='{path}'"])


def test_a_hand_edited_path_is_refused_until_the_dep_follows() -> None:
    with pytest.raises(ConfigError, match=r"Set inputs\.rows to rows\.jsonl"):
        compose(["prepare=file", "prepare.path=rows.jsonl", "inputs.rows=other.jsonl"])
