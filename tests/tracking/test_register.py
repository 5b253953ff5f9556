"""A registered version answers through MLflow, and says what made it."""

from pathlib import Path

import mlflow.pyfunc
import pytest

from stages.runtime import Paths
from stages.tracking.register import register
from stages.tracking.store import open_store


def test_a_registered_version_answers_and_says_what_made_it(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    paths = Paths(tmp_path)
    shutil.copytree(tiny_base, paths.merged)
    client, experiment = open_store(tmp_path)
    run_id = client.create_run(experiment).info.run_id
    tags = {"dvc.lock": "a" * 64, "data": "b" * 32}
    first = register(client, paths, "quotes", run_id, tags)
    assert register(client, paths, "quotes", run_id, tags) == first
    second = register(client, paths, "quotes", run_id, tags | {"dvc.lock": "c" * 64})
    assert (first, second) == ("1", "2")

    made = client.get_model_version("quotes", first)
    assert made.run_id == run_id
    assert made.tags == tags
    model = mlflow.pyfunc.load_model("models:/quotes/1")
    (said,) = model.predict(["Quote: "], params=None)
    assert isinstance(said, str)
    assert said
