"""Tiny real things: a random Llama with a real tokenizer, and runs of real stages on it."""

import http.server
import importlib
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loradag.config.composition import compose, plain, write_params
from loradag.config.sections import Config, Runtime
from loradag.config.validation import validate
from loradag.runtime import Paths
from loradag.runtime.environment import configure
from loradag.runtime.report_files import check_report
from loradag.runtime.stage import sections

ROOT = Path(__file__).parents[1]
HUB_TOKEN = "hf_secret_of_the_test"
ServeHub = Callable[[type[http.server.BaseHTTPRequestHandler]], None]

configure(Runtime(threads=int(os.environ.get("LORADAG_THREADS", 1)), device="cpu"))
os.environ["HF_HUB_OFFLINE"] = "1"


def smoke_config(*overrides: str) -> Config:
    """The config of `experiment=smoke` with `overrides`."""
    return validate(plain(compose(["experiment=smoke", *overrides])))


def run_stages(paths: Paths, config: Config, *stages: str) -> dict[str, dict[str, Any]]:
    """Run stages in this process, as `run_stage` does; their checked reports by name."""
    reports = {}
    for stage in stages:
        if stage == "prepare" and not paths.source.exists():
            run_stages(paths, config, "source")
        function = getattr(importlib.import_module(f"stages.{stage}"), stage)
        reports[stage] = check_report(stage, function(paths, **sections(function, config)))
    return reports


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test writes into the user's MLflow store."""
    store = tmp_path_factory.getbasetemp() / "mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}")
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # an absent server costs a second


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as `fetch` writes it: random weights, a real tokenizer."""
    from loradag.models.base import fetch_base

    folder = tmp_path_factory.mktemp("tiny") / "base"
    fetch_base(smoke_config().model, folder)
    return folder


@pytest.fixture
def project(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Paths, Config]]:
    """A fresh folder with `params.yaml` and the tiny base; call it with overrides."""

    def make(*overrides: str) -> tuple[Paths, Config]:
        monkeypatch.chdir(tmp_path)
        composed = compose(["experiment=smoke", *overrides])
        write_params(composed, tmp_path)
        paths = Paths(tmp_path)
        shutil.copytree(tiny_base, paths.base)
        return paths, validate(plain(composed))

    return make


@pytest.fixture(scope="session")
def trained(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Paths, Config, dict[str, dict[str, Any]]]:
    """A run up to `train` with nf4 and LoRA: paths, config, reports. Read it, never write to it."""
    root = tmp_path_factory.mktemp("trained")
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{root}/mlflow.db"
    paths, config = Paths(root), smoke_config()
    shutil.copytree(tiny_base, paths.base)
    reports = run_stages(paths, config, "prepare", "quantize", "train")
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before
    return paths, config, reports


@pytest.fixture(scope="session")
def export_config() -> Config:
    return smoke_config("quantize=none")


@pytest.fixture(scope="session")
def exportable(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, export_config: Config
) -> Paths:
    """A project up to `merge` whose weights matter: perplexity moves when any of them does.

    Tests write to its `artifacts/export` alone.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from loradag.models.loading import load_model

    paths = Paths(tmp_path_factory.mktemp("exportable"))
    shutil.copytree(tiny_base, paths.base)
    model = load_model(paths.base, torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 6  # of its initial 0.02, which makes every next token as likely
    model.save_pretrained(paths.base)
    (paths.base / "LICENSE.txt").write_text("May be passed on together with this text.\n")
    run_stages(paths, export_config, "prepare", "quantize")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    tuned.save_pretrained(paths.adapter)
    run_stages(paths, export_config, "merge")
    return paths


@pytest.fixture
def serve_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ServeHub]:
    """Call it with a handler: on loopback, it answers what huggingface_hub asks from then on."""
    from huggingface_hub import constants

    servers = []

    def start(handler: type[http.server.BaseHTTPRequestHandler]) -> None:
        quiet = type("Quiet", (handler,), {"log_message": lambda *_: None})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", HUB_TOKEN)

    yield start
    for server in servers:
        server.shutdown()
