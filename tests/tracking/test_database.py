"""The SQLite store is created completely or not at all, also when its creator is killed."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loradag.config.problems import LoradagError
from loradag.tracking.database import database_path, ensure_database
from tests.conftest import ROOT

CREATE = "import sys; from loradag.tracking.database import ensure_database as e; e(sys.argv[1])"


def creator(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CREATE, f"sqlite:///{path}"],
        cwd=path.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def killed_while_migrating(process: subprocess.Popen[str], folder: Path) -> None:
    """Kill `process` once it has created some of the tables."""
    deadline = time.monotonic() + 120
    while not any(file.stat().st_size > 100_000 for file in folder.rglob("*.db") if file.exists()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_while_it_is_created_it_is_not_there_and_the_next_creates_it(tmp_path) -> None:
    path = tmp_path / "mlflow.db"
    killed_while_migrating(creator(path), tmp_path)
    assert not path.exists()
    ensure_database(f"sqlite:///{path}")
    assert {file.name for file in tmp_path.iterdir()} == {"mlflow.db"}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{path}")
    assert client.create_experiment("usable")


def test_a_database_that_mlflow_left_half_created_is_named_with_the_remedy(tmp_path) -> None:
    path = tmp_path / "mlflow.db"
    script = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1])"
    mlflow_alone = subprocess.Popen([sys.executable, "-c", script, f"sqlite:///{path}"])
    killed_while_migrating(mlflow_alone, tmp_path)
    with pytest.raises(LoradagError, match=r"mlflow\.db: .* is incomplete.* Delete it") as refused:
        ensure_database(f"sqlite:///{path}")
    assert "\n" not in str(refused.value)
    path.unlink()
    (tmp_path / "mlflow.db-journal").unlink(missing_ok=True)
    ensure_database(f"sqlite:///{path}")


def test_two_creators_make_one_database(tmp_path) -> None:
    both = [creator(tmp_path / "mlflow.db") for _ in range(2)]
    messages = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    ensure_database(f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_an_older_database_with_runs_is_never_migrated_in_place(empty_store, tmp_path) -> None:
    path = Path(shutil.copy(empty_store, tmp_path / "mlflow.db"))
    with sqlite3.connect(path) as database:
        database.execute("update alembic_version set version_num = 'cc1f77228345'")
        database.execute("insert into runs (run_uuid, experiment_id) values ('a', 0)")
    before = path.read_bytes()
    with pytest.raises(LoradagError, match=f"mlflow db upgrade sqlite:///{path}"):
        ensure_database(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_an_empty_file_counts_as_none(tmp_path) -> None:
    (tmp_path / "mlflow.db").touch()
    ensure_database(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert (tmp_path / "mlflow.db").stat().st_size > 0


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:9",
        "postgresql://u:p@127.0.0.1:9/mlflow",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_other_stores_are_left_alone(uri) -> None:
    assert database_path(uri) is None
    ensure_database(uri)


def test_options_of_a_uri_are_no_part_of_the_file(tmp_path) -> None:
    assert database_path(f"sqlite:///{tmp_path}/a.db?timeout=5") == tmp_path / "a.db"
    assert database_path("sqlite:///a.db") == Path.cwd() / "a.db"
