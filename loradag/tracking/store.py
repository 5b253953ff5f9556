"""The MLflow store: `MLFLOW_TRACKING_URI`, else `mlflow.db` in the project's root.

Through `MlflowClient` alone. The fluent API keeps one active run a process: it consumes
`MLFLOW_RUN_ID` at the first `start_run`, then ignores a parent, and marks the run finished when
the process exits, though other stages still have to log to it.
"""

from __future__ import annotations

import getpass
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from loradag.config.problems import LoradagError
from loradag.tracking.database import database_path, ensure_database

if TYPE_CHECKING:
    from mlflow import MlflowClient

TOKEN_TAG = "loradag.token"  # on every run: identifies the request that created it
NAME_LIMIT = 250  # characters of a run's name, in the column of MLflow's database


def open_store(root: Path = Path()) -> tuple[MlflowClient, str]:
    """The client of the store, and the id of the experiment (`MLFLOW_EXPERIMENT_NAME`, `loradag`).

    Both are created where they do not exist yet.

    Raises:
        LoradagError: the SQLite database is incomplete, or of another version of MLflow; or the
            experiment was deleted.
    """
    # Half a minute, in which a server restarts; MLflow's default waits for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports each table that it creates
    uri = store_uri(root)
    ensure_database(uri)
    client = MlflowClient(uri)
    if experiment_id := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return client, experiment_id
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "loradag")
    if (experiment := client.get_experiment_by_name(name)) is not None:
        if experiment.lifecycle_stage == "deleted":
            raise LoradagError(
                f"MLflow at {shown_uri(uri)}: the experiment {name!r} is deleted. Restore it with "
                f"`mlflow experiments restore -x {experiment.experiment_id}`, or set "
                "MLFLOW_EXPERIMENT_NAME to another name, and run the command again."
            )
        return client, experiment.experiment_id
    try:
        return client, client.create_experiment(name, _artifact_location(uri, name))
    except MlflowException:
        # Another job may have created it in the meantime.
        if (experiment := client.get_experiment_by_name(name)) is None:
            raise
        return client, experiment.experiment_id


def store_uri(root: Path = Path()) -> str:
    """The tracking URI; a path in it is absolute, so that it means the same in every workspace.

    `dvc exp run --temp` and `--queue` run in a copy below `.dvc/tmp`, which is deleted
    afterwards: their runs belong in the store of the project that contains it.
    """
    here = root.resolve()
    project = next((parent.parent for parent in here.parents if parent.name == ".dvc"), here)
    uri = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if database_path(uri) is not None:
        return f"sqlite:///{project / uri.removeprefix('sqlite:///')}"
    if uri.startswith("file:"):
        return (project / urlsplit(uri).path).as_uri()
    return uri


def shown_uri(uri: str) -> str:
    """`uri` without its user and password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.netloc else uri


def reason(error: Exception) -> str:
    """The first line of an error of MLflow's, without the store's password and its full stop."""
    line = (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
    password = urlsplit(store_uri()).password
    return line.replace(password, "***") if password else line


def create_run(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    tags: dict[str, str],
    parent: str | None = None,
) -> str:
    """Create a run, as a child of the run `parent` if given; the id of it. It stays RUNNING."""
    # https://mlflow.org/docs/latest/ml/tracking/ lists the tags that its UI reads.
    system = {
        "mlflow.user": _user(),
        "mlflow.source.name": "loradag",
        "mlflow.source.type": "LOCAL",
    }
    if parent is not None:
        system["mlflow.parentRunId"] = parent
    tags = {TOKEN_TAG: uuid.uuid4().hex, **system, **tags}
    run = client.create_run(experiment_id, run_name=name[:NAME_LIMIT], tags=tags)
    run_id = str(run.info.run_id)
    # MLflow repeats a request whose answer was lost, and the server may have created a run by then.
    for other in find_runs(client, experiment_id, tags[TOKEN_TAG]):
        if other != run_id:
            client.delete_run(other)
    return run_id


def find_runs(client: MlflowClient, experiment_id: str, token: str) -> list[str]:
    """The ids of the runs whose TOKEN_TAG is `token`."""
    found = client.search_runs([experiment_id], f"tags.`{TOKEN_TAG}` = '{token}'")
    return [str(run.info.run_id) for run in found]


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Next to the database, whatever the working directory; None: a server decides for itself."""
    database = database_path(uri)
    if database is None:
        return None
    return (database.resolve().parent / "mlruns" / experiment).as_uri()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"
