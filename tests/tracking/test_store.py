from pathlib import Path

import pytest

from loradag.runtime import Paths
from loradag.tracking.store import create_run, open_store, reason, shown_uri, store_uri


def test_the_default_store_lies_in_the_root_with_its_files_beside_it(paths: Paths) -> None:
    client, experiment_id = open_store()
    experiment = client.get_experiment(experiment_id)
    assert client.tracking_uri == f"sqlite:///{paths.root / 'mlflow.db'}"
    assert experiment.name == "loradag"
    assert experiment.artifact_location == (paths.root / "mlruns/loradag").as_uri()


def test_mlflows_own_variables_win(
    paths: Paths, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (paths.root / "mlflow.db").rename(elsewhere / "shared.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{elsewhere / 'shared.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ranks")
    client, experiment_id = open_store()
    experiment = client.get_experiment(experiment_id)
    assert experiment.name == "ranks"
    assert experiment.artifact_location == (elsewhere / "mlruns/ranks").as_uri()
    assert open_store()[1] == experiment_id, "the same experiment, not a second one"
    assert not (paths.root / "mlflow.db").exists()


def test_an_experiment_in_a_temporary_copy_logs_to_the_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = tmp_path / ".dvc/tmp/exps/standalone/tmp1"
    copy.mkdir(parents=True)
    assert store_uri(copy) == store_uri(tmp_path) == f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mine.db", "sqlite:///{project}/mine.db"),
        ("sqlite:///mine.db?timeout=9", "sqlite:///{project}/mine.db?timeout=9"),
        ("sqlite:////x/mine.db", "sqlite:////x/mine.db"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("file:mlruns", "file://{project}/mlruns"),
        ("file:///x/mlruns", "file:///x/mlruns"),
        ("databricks", "databricks"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
    ],
)
def test_a_relative_path_means_the_same_in_every_workspace(
    uri: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    copy = tmp_path / ".dvc/tmp/exps/standalone/tmp1"
    copy.mkdir(parents=True)
    expected = absolute.format(project=tmp_path)
    assert store_uri(copy) == store_uri(tmp_path) == expected


def test_passwords_of_a_store_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "https://me:s3cret@mlflow.example:8080/base"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert shown_uri(uri) == "https://mlflow.example:8080/base"
    assert shown_uri("sqlite:////x/mlflow.db") == "sqlite:////x/mlflow.db"
    assert "s3cret" not in reason(OSError(f"no route to {uri}\nand more"))
    assert reason(OSError()) == "OSError"


def test_a_child_run_knows_its_parent(paths: Paths) -> None:
    client, experiment_id = open_store()
    parent = create_run(client, experiment_id, "sweep", {"swept": "adapter.r"})
    child = create_run(client, experiment_id, "r=4", {"swept.adapter.r": "4"}, parent=parent)
    run = client.get_run(child)
    assert client.get_parent_run(child).info.run_id == parent
    assert (run.info.run_name, run.info.status) == ("r=4", "RUNNING")
    assert run.data.tags["swept.adapter.r"] == "4"
    assert run.data.tags["mlflow.user"]
