"""A tracking server: many writers, a restart in the middle, lost answers, and authentication."""

import base64
import http.client
import http.server
import os
import pwd
import re
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
from typing import Any

import pytest
import requests
import yaml
from mlflow.cli import server as mlflow_server

from loradag.config.problems import LoradagError
from loradag.runtime import Paths
from loradag.tracking.live import live_callback
from loradag.tracking.publish import publish
from tests.conftest import ROOT

STEPS = 30
SECRET = "secret_of_the_test"


def write(folder: Path, number: str, is_midway: threading.Event) -> None:
    """Log what `train` and then `report` log, in a project of its own.

    `report` again until it succeeds, as a user repeats `dvc repro`.
    """
    folder.mkdir(exist_ok=True)
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
        self.artifacts, self.port = artifacts, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
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
                if requests.get(f"{self.uri}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                assert self.process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def runs(self) -> tuple[Any, list[Any]]:
        """A client, and the runs of the test's experiment."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        experiment = client.get_experiment_by_name(os.environ["MLFLOW_EXPERIMENT_NAME"])
        return client, list(client.search_runs([experiment.experiment_id]))


def check_a_restart(server: Server, folder: Path, writers: int) -> None:
    """Kill the server amid `writers` at once, start it again, and check what it has of each."""
    from transformers import TrainerCallback  # noqa: F401  # its lazy import is not thread-safe

    os.environ["MLFLOW_TRACKING_URI"] = server.uri  # `_apart` puts it back
    is_midway = threading.Event()
    with ThreadPoolExecutor(writers) as pool:
        written = [
            pool.submit(write, folder / str(number), str(number), is_midway)
            for number in range(writers)
        ]
        assert is_midway.wait(300)
        server.kill()
        time.sleep(2)
        server.start()
        for writer in written:
            writer.result(timeout=500)
    client, runs = server.runs()
    assert sorted(run.data.params.get("seed", "none") for run in runs) == [
        str(number) for number in range(writers)
    ]
    for run in runs:
        assert run.info.status == "FINISHED"
        assert run.data.metrics["train.steps"] == STEPS
        history = client.get_metric_history(run.info.run_id, "loss")
        assert sorted(point.step for point in history) == list(range(1, STEPS + 1))
        files = [file.path for file in client.list_artifacts(run.info.run_id)]
        assert files == ["params.yaml"]


@pytest.mark.slow
def test_nothing_is_lost_or_duplicated_by_eight_writers_on_postgresql(database, tmp_path) -> None:
    server = Server(database, tmp_path / "artifacts")
    try:
        check_a_restart(server, tmp_path, writers=8)
    finally:
        server.kill()


@pytest.fixture(scope="module")
def sqlite_server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    server = Server(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts")
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def _experiment(request, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)


def test_nothing_is_lost_or_duplicated_by_three_writers_on_sqlite(sqlite_server, tmp_path) -> None:
    check_a_restart(sqlite_server, tmp_path, writers=3)


class Proxy:
    """Passes requests on to a server; it can lose an answer, and demand credentials.

    Args:
        loses: a path whose first request reaches the server, and whose answer is lost.
        credentials: what the header Authorization has to be.
    """

    def __init__(self, server: Server, loses: str = "", credentials: str = "") -> None:
        self.lost = 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if credentials and self.headers.get("Authorization") != credentials:
                    return self.send_error(401)
                passed = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k != "Host"}
                passed.request(self.command, self.path, body, headers)
                answer = passed.getresponse()
                content = answer.read()
                if loses and self.path.endswith(loses) and not proxy.lost:
                    proxy.lost += 1
                    return self.connection.close()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", ""))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return None

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer  # noqa: N815

            def log_message(self, *_: object) -> None: ...

        self.port, self.handler = free_port(), Handler

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize("request_path", ["runs/create", "runs/log-batch", "runs/update"])
def test_a_request_whose_answer_was_lost_counts_once(
    request_path, sqlite_server, tmp_path, monkeypatch
) -> None:
    proxy = Proxy(sqlite_server, loses=request_path)
    proxy.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    write(tmp_path, "1", threading.Event())
    assert proxy.lost == 1
    client, (run,) = sqlite_server.runs()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in history] == list(range(1, STEPS + 1))


def test_a_server_that_is_away_for_ten_seconds_costs_only_time(
    sqlite_server, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES")  # what `open_store` sets
    proxy = Proxy(sqlite_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    threading.Timer(10, proxy.start).start()
    reports = {"train": {"checkpoint_key": "key", "steps": STEPS}}
    publish(Paths(tmp_path), "one", {"seed": "1"}, reports, {}, {})
    _, (run,) = sqlite_server.runs()
    assert run.data.metrics["train.steps"] == STEPS


@pytest.mark.parametrize(
    ("credentials", "variables"),
    [
        (
            "Basic " + base64.b64encode(f"team:{SECRET}".encode()).decode(),
            {"MLFLOW_TRACKING_USERNAME": "team", "MLFLOW_TRACKING_PASSWORD": SECRET},
        ),
        (f"Bearer {SECRET}", {"MLFLOW_TRACKING_TOKEN": SECRET}),
    ],
    ids=["password", "token"],
)
def test_credentials_come_from_mlflows_variables_and_go_nowhere_else(
    credentials, variables, sqlite_server, tmp_path, monkeypatch, capfd
) -> None:
    proxy = Proxy(sqlite_server, credentials=credentials)
    proxy.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    paths, reports = Paths(tmp_path), {"train": {"checkpoint_key": "key"}}
    for name in variables:
        monkeypatch.setenv(name, f"wrong_{SECRET}")
    with pytest.raises(LoradagError, match="401") as refused:
        publish(paths, "one", {"seed": "1"}, reports, {}, {})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    write(tmp_path, "1", threading.Event())
    _, (run,) = sqlite_server.runs()
    served = Path(sqlite_server.artifacts).parent.rglob("*")
    for file in [*tmp_path.rglob("*"), *served]:
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file
    shown = [str(refused.value), *capfd.readouterr(), str(run.to_dictionary())]
    assert SECRET not in "".join(shown)


def test_the_compose_file_takes_pinned_versions_and_every_secret_from_outside() -> None:
    text = (ROOT / "docs/compose.yaml").read_text()
    pinned = set((ROOT / "constraints.txt").read_text().splitlines())
    for package, version in re.findall(r"'([\w-]+)(?:\[\w+\])?(==[\d.]+)'", text):
        assert f"{package}{version}" in pinned
    services = yaml.safe_load(text)["services"]
    for service in services.values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET|URI", name):
                assert "${" in value, name
    # Every option is one of MLflow's.
    command = services["mlflow"]["command"]
    assert command[:2] == ["mlflow", "server"]
    known = {option for parameter in mlflow_server.params for option in parameter.opts}
    assert {word for word in command if word.startswith("--")} <= known
