"""A tracking server on PostgreSQL: many writers, and a restart in the middle."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests

from loradag.config.problems import LoradagError
from loradag.runtime import Paths
from loradag.tracking.live import live_callback
from loradag.tracking.publish import publish

WRITERS = 8
STEPS = 30


def write(folder: Path, number: str, is_midway: threading.Event) -> None:
    """Log what `train` and then `report` log, in a project of its own.

    `report` again until it succeeds, as a user repeats `dvc repro`.
    """
    folder.mkdir()
    paths, key = Paths(folder), f"key{number}"
    paths.params.write_text(f"seed: {number}")
    live = live_callback(paths, key)
    state = SimpleNamespace(is_world_process_zero=True, global_step=0)
    live.on_train_begin(None, state, None)
    for step in range(1, STEPS + 1):
        state.global_step = step
        live.on_log(None, state, None, logs={"loss": 1 / step})
        if step == STEPS // 3:
            is_midway.set()
    reports = {"train": {"checkpoint_key": key, "steps": STEPS}}
    curves = {step: {"loss": 1 / step} for step in range(1, STEPS + 1)}
    while True:
        try:
            publish(paths, f"writer {number}", {"seed": number}, reports, curves, {"who": number})
            return
        except LoradagError:
            time.sleep(1)


@pytest.fixture
def database() -> Iterator[str]:
    """A PostgreSQL server on a free port; its URI. It refuses to run as root."""
    if not shutil.which("pg_ctl") or not shutil.which("initdb"):
        pytest.skip("PostgreSQL is not installed")
    user = "postgres" if os.geteuid() == 0 else None
    if user and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("there is no user to run PostgreSQL as")
    folder, port = Path(tempfile.mkdtemp(prefix="postgres")), free_port()
    if user:
        shutil.chown(folder, user)
    data = str(folder / "data")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"

    def run(*command: str) -> None:
        subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run("initdb", "-D", data, "-A", "trust", "-U", "mlflow")
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start")
    yield f"postgresql://mlflow@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    def __init__(self, database: str, artifacts: Path) -> None:
        self.port = free_port()
        self.command = [
            sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database,
            "--artifacts-destination", str(artifacts), "--port", str(self.port), "--workers", "2",
        ]  # fmt: skip
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while True:
            try:
                if requests.get(f"http://127.0.0.1:{self.port}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
def test_nothing_is_lost_or_duplicated_when_the_server_is_killed(
    database, tmp_path, monkeypatch
) -> None:
    from mlflow import MlflowClient
    from transformers import TrainerCallback  # noqa: F401  # its lazy import is not thread-safe

    server = Server(database, tmp_path / "artifacts")
    uri = f"http://127.0.0.1:{server.port}"
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client, is_midway = MlflowClient(uri), threading.Event()
    try:
        with ThreadPoolExecutor(WRITERS) as pool:
            writers = [
                pool.submit(write, tmp_path / str(number), str(number), is_midway)
                for number in range(WRITERS)
            ]
            assert is_midway.wait(300)
            server.kill()
            time.sleep(2)
            server.start()
            for writer in writers:
                writer.result(timeout=500)
        runs = all_runs(client)
        assert sorted(run.data.params.get("seed", "none") for run in runs) == [
            str(number) for number in range(WRITERS)
        ]
        for run in runs:
            assert run.info.status == "FINISHED"
            assert run.data.metrics["train.steps"] == STEPS
            history = client.get_metric_history(run.info.run_id, "loss")
            assert sorted(point.step for point in history) == list(range(1, STEPS + 1))
            files = [file.path for file in client.list_artifacts(run.info.run_id)]
            assert files == ["params.yaml"]
    finally:
        server.kill()


def all_runs(client) -> list:
    experiment = client.get_experiment_by_name("loradag")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))
