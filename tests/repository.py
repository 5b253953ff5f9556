"""A git and DVC repository of the project itself, with commands that run in it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

EXPERIMENT = "loradag"


def copy_project(root: Path) -> None:
    """Copy the project to `root`, without the results of a run."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("reports/", "plots/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, root / name)


class Repository:
    """The project copied to `root`, composed with `experiment=smoke`, committed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(root),
            "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
            "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b",
        }  # fmt: skip
        copy_project(root)
        self.compose()
        self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", "Start")

    def run(self, *command: str, fails: bool = False) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=1200,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return done.stdout

    def compose(self, *overrides: str) -> None:
        self.run("python", "-m", "conf", "experiment=smoke", *overrides)

    def runs(self) -> list[Any]:
        """Every run in MLflow, the newest first."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        return client.search_runs([experiment.experiment_id], order_by=["start_time DESC"])
