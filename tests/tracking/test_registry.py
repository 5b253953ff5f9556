"""A registered version answers through MLflow, and records what made it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow.pyfunc
import pytest

from loradag.runtime import Paths
from loradag.tracking.registry import WINNER_TAG, name_champion, register, register_adapter
from loradag.tracking.store import open_store

PROMPT = "The quick brown"


def test_a_registered_version_answers_and_records_what_made_it(
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
    (answer,) = model.predict([PROMPT], params={"max_new_tokens": 8})
    assert answer.startswith(PROMPT)
    assert answer != PROMPT
    assert answer_of_server("models:/quotes/1") == answer


def test_an_adapter_is_registered_alone_and_answers_on_its_base(
    trained: tuple[Paths, object, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    paths, _, _ = trained
    client, experiment = open_store(tmp_path)
    run_id = client.create_run(experiment).info.run_id
    number = register_adapter(client, paths, "quotes-adapter", run_id, {"dvc.lock": "a" * 64})
    made = client.get_model_version("quotes-adapter", number)
    folder = Path(mlflow.artifacts.download_artifacts(made.source))
    assert (folder / "peft/adapter_model.safetensors").read_bytes() == (
        paths.adapter / "adapter_model.safetensors"
    ).read_bytes()
    weights = [file for file in folder.rglob("*.safetensors") if file.parent.name != "peft"]
    assert weights == [], "the base is referred to, not copied"
    model = mlflow.pyfunc.load_model(f"models:/quotes-adapter/{number}")
    (answer,) = model.predict([PROMPT], params={"max_new_tokens": 8})
    assert answer.startswith(PROMPT)
    assert answer != PROMPT


def test_the_winner_of_a_sweep_is_the_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client, experiment = open_store(tmp_path)
    client.create_registered_model("quotes")
    run_id = client.create_run(experiment).info.run_id
    versions = [client.create_model_version("quotes", f"{tmp_path}/{n}").version for n in "ab"]
    assert not name_champion(client, "quotes", versions[0], run_id, "another key")
    assert "champion" not in client.get_registered_model("quotes").aliases
    client.create_run(experiment, tags={WINNER_TAG: "winners"})
    for version in versions:  # a later winner takes the alias over
        assert name_champion(client, "quotes", version, run_id, "winners")
        assert client.get_model_version_by_alias("quotes", "champion").version == version


def answer_of_server(model: str) -> str:
    """What `mlflow models serve` answers to the same request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    served = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    server = subprocess.Popen(
        [*served, "--env-manager", "local", "--port", port],
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # it starts another process, which is to end with it
    )
    body = {"inputs": [PROMPT], "params": {"max_new_tokens": 8}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    (text,) = json.load(answer)["predictions"]
                    return str(text)
            except urllib.error.URLError:
                assert server.poll() is None
                time.sleep(0.5)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    raise TimeoutError(model)
