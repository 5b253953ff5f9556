"""A project with a toy pipeline, and the real sweep run on it as users run it."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.sweeps import toy as pipeline

ROOT = Path(__file__).parents[2]


@dataclass
class Toy:
    root: Path
    environment: dict[str, str]
    experiment: str
    store: str
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.root.parent / f"{self.root.name}.log"
        self.environment["TOY_LOG"] = str(self.log)

    def start(self, module: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, module: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Run `python -m module arguments`; its exit code and its output."""
        process = self.start(module, *arguments, **environment)
        output, _ = process.communicate(timeout=600)
        return process.returncode, output

    def sweep(self, *arguments: str, **environment: str) -> tuple[int, str]:
        return self.run("stages.sweep", "-m", *arguments, **environment)

    def ran(self) -> Counter[str]:
        """How often each stage ran since the last time this was asked."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return Counter(lines)

    def runs(self) -> tuple[list[Any], list[Any]]:
        """Parents and children in MLflow."""
        from mlflow import MlflowClient

        client = MlflowClient(self.store)
        experiment = client.get_experiment_by_name(self.experiment)
        found = client.search_runs([experiment.experiment_id])
        children = [run for run in found if "mlflow.parentRunId" in run.data.tags]
        return [run for run in found if run not in children], children


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all tests, since creating one takes seconds."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    MlflowClient(uri).search_experiments()  # creates it
    return uri


@pytest.fixture
def toy(tmp_path: Path, store: str) -> Toy:
    return make_toy(tmp_path / "project", store)


def make_toy(root: Path, store: str) -> Toy:
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\nno_scm = true\nanalytics = false\n")
    (root / ".dvcignore").write_text("__pycache__\n")
    (root / "dvc.yaml").write_text(pipeline.PIPELINE)
    (root / "toy.py").write_text(Path(pipeline.__file__).read_text())
    (root / "rows.txt").write_text(pipeline.ROWS)
    (root / "method.py").write_text(pipeline.METHOD)
    experiment = str(root.parent.name)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_EXPERIMENT_NAME": experiment,
        "COLUMNS": "160",
    }
    return Toy(root, environment, experiment, store)
