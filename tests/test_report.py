import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from loradag.runtime import Paths, write_json
from loradag.runtime.stage import mark_ran
from loradag.tracking.store import open_store
from tests.conftest import ROOT
from tests.reporting.example import write_project

# As `python -m stages.report`, and then what it imported.
STAGE = """
import runpy, sys
runpy.run_module("stages.report", run_name="__main__")
heavy = {"torch", "transformers", "datasets"} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    """A finished pipeline whose training has just run."""
    root = tmp_path_factory.mktemp("project")
    write_project(root, "experiment=smoke")
    paths = Paths(root)
    mark_ran(paths, "train")
    return paths


def run_report(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.run(
        [sys.executable, "-c", STAGE],
        cwd=root,
        env=inherited | {"PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_verysecret"} | environment,
        capture_output=True,
        text=True,
    )


def client_of(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> tuple[MlflowClient, str]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return open_store(paths.root)


def test_a_store_that_is_not_there_fails_the_stage_and_keeps_the_page(paths: Paths) -> None:
    failed = run_report(
        paths.root, MLFLOW_TRACKING_URI="http://127.0.0.1:9", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0"
    )
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1, failed.stderr
    assert "MLFLOW_TRACKING_URI" in failed.stderr
    assert paths.page.exists()
    assert not (paths.state / "published.json").exists(), "the next attempt says what ran"


def test_the_stage_writes_publishes_and_prints(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run_report(paths.root)
    assert ran.returncode == 0, ran.stderr
    assert "−48.0 %" in ran.stdout
    assert "dvc exp run --no-hydra -S adapter.r=16" in ran.stdout
    assert "19.80" in paths.page.read_text(encoding="utf-8")
    assert not paths.report("report").exists(), "what it returns is no report"
    client, experiment_id = client_of(paths, monkeypatch)
    (run,) = client.search_runs([experiment_id])
    assert run.data.tags["stage.train"] == "ran"
    assert run.data.tags["stage.merge"] == "cached"
    assert "| adapter | 19.80 | −48.0 % |" in run.data.tags["mlflow.note.content"]
    assert "report.html" in {file.path for file in client.list_artifacts(run.info.run_id)}


def test_a_run_wholly_from_the_cache_is_as_complete(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = json.loads(paths.report("merge").read_text())
    write_json(paths.report("merge"), report | {"seconds": 31.0})  # as another run's
    assert run_report(paths.root).returncode == 0
    client, experiment_id = client_of(paths, monkeypatch)
    cached, before = client.search_runs([experiment_id])
    assert cached.data.params == before.data.params
    assert cached.data.metrics == before.data.metrics | {"merge.seconds": 31.0}
    for run in (cached, before):
        curve = client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in curve] == [*range(1, 61)]
    assert cached.data.tags["dvc.lock"] == before.data.tags["dvc.lock"]
    assert cached.data.tags["stage.train"] == "cached"


def test_the_same_reports_again_are_the_same_run(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_report(paths.root).returncode == 0
    client, experiment_id = client_of(paths, monkeypatch)
    runs = client.search_runs([experiment_id])
    assert len(runs) == 2
    for run in runs:
        curve = client.get_metric_history(run.info.run_id, "loss")
        assert [point.step for point in curve] == [*range(1, 61)]


def test_no_token_is_in_what_was_written(paths: Paths) -> None:
    for file in paths.root.rglob("*"):
        if file.is_file():
            assert b"hf_verysecret" not in file.read_bytes(), file


def test_a_job_that_ends_at_evaluate_is_complete_and_lists_what_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_project(tmp_path, "experiment=smoke", "export.register=tuned")
    paths = Paths(tmp_path)
    for stage in ("merge", "export"):
        paths.report(stage).unlink()
    ran = run_report(tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "Not run     merge export" in ran.stdout
    page = paths.page.read_text(encoding="utf-8")
    assert page.count("not run") == 2
    assert "sweep.until=export" in page
    client, experiment_id = client_of(paths, monkeypatch)
    (run,) = client.search_runs([experiment_id])
    assert run.data.tags["stage.merge"] == run.data.tags["stage.export"] == "not run"
    assert run.data.tags["stage.evaluate"] == "cached"
    assert "evaluate.adapter.perplexity" in run.data.metrics
    assert not [name for name in run.data.metrics if name.startswith(("merge.", "export."))]
    assert not client.search_registered_models()  # there is no merged model to register
