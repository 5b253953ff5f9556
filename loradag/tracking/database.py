"""MLflow's SQLite database: created completely or not at all.

MLflow creates the tables in dozens of migrations when a store is first opened, some seconds long,
and SQLite's migrations are not transactional: a process killed there leaves a database that MLflow
can neither use nor repair. So it is created in a folder next to its place and then renamed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from loradag.config.problems import LoradagError
from loradag.runtime.locking import exclusive


def ensure_database(uri: str) -> None:
    """Create the database of a `sqlite:///` URI where there is none; other URIs are left alone.

    One process creates it, others wait for it.

    Raises:
        LoradagError: the file is no complete MLflow database of the installed version.
    """
    path = database_path(uri)
    if path is None:
        return
    if not _exists(path):
        _create(path)
    _check(path, uri)


def database_path(uri: str) -> Path | None:
    """The file of a `sqlite:///` URI; None for every other kind of store."""
    if not uri.startswith("sqlite:///"):
        return None
    name = uri.removeprefix("sqlite:///").partition("?")[0]
    if not name or name == ":memory:" or name.startswith("file:"):
        return None
    return Path(name).absolute()


def _exists(path: Path) -> bool:
    # SQLite makes an empty file when it connects, before the first table.
    return path.exists() and path.stat().st_size > 0


def _create(path: Path) -> None:
    from mlflow import MlflowClient

    lock = path.with_name(f".{path.name}.lock")
    with exclusive(lock, f"{path}: another process creates it; waiting."):
        if _exists(path):
            return
        prefix = f".{path.name}.creating-"
        for left in path.parent.glob(f"{prefix}*"):  # by a process that was killed
            shutil.rmtree(left)
        # A name of its own each time: SQLite takes a journal that it finds for the file's.
        with tempfile.TemporaryDirectory(prefix=prefix, dir=path.parent) as folder:
            migrated, complete = Path(folder) / "migrated.db", Path(folder) / "complete.db"
            MlflowClient(f"sqlite:///{migrated}")
            # MLflow keeps its connection open. The copy has none, so it can be renamed.
            with (
                closing(sqlite3.connect(migrated)) as source,
                closing(sqlite3.connect(complete)) as target,
            ):
                source.backup(target)
            os.replace(complete, path)


def _check(path: Path, uri: str) -> None:
    from loradag.compat.mlflow import expected_revision

    revision = has_runs = None
    try:
        # rw, not ro: SQLite first rolls back what a killed process had not committed.
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True)) as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master")}
            if "alembic_version" in tables:
                (revision,) = database.execute("select version_num from alembic_version").fetchone()
            if "runs" in tables:
                has_runs = database.execute("select 1 from runs limit 1").fetchone()
    except (sqlite3.DatabaseError, TypeError) as error:
        raise LoradagError(
            f"{path}: no MLflow database ({error}). Delete it, or set MLFLOW_TRACKING_URI to "
            "another store."
        ) from error
    if revision == (expected := expected_revision()):
        return
    found = f"{path}: its schema revision is {revision}, and this MLflow's is {expected}."
    if has_runs:
        raise LoradagError(
            f"{found} Another version of MLflow has made it. Copy the file, then run `mlflow db "
            f"upgrade {uri}`, or set MLFLOW_TRACKING_URI to another store."
        )
    raise LoradagError(
        f"{found} It is incomplete: MLflow was killed while creating it, and cannot repair it. It "
        "holds no runs. Delete it, then run the command again."
    )
