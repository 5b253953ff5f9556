import shutil
from pathlib import Path

import pytest

from loradag.runtime import Paths
from loradag.tracking.store import open_store
from tests.reporting.example import write_project


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables; making them takes seconds, copying them none."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
        open_store(root)
    return root / "mlflow.db"


@pytest.fixture
def paths(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Paths:
    """A finished pipeline, in the working directory, with a store of its own."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_EXPERIMENT_ID",
        "MLFLOW_EXPERIMENT_NAME",
        "MLFLOW_RUN_ID",
    ):
        monkeypatch.delenv(name, raising=False)
    write_project(tmp_path, "experiment=smoke")
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.chdir(tmp_path)
    return Paths(tmp_path)
