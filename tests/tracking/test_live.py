import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from loradag.runtime import Paths
from loradag.tracking.live import close_run, live_callback, open_run
from loradag.tracking.store import create_run, open_store


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Linear(1, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.slope(x) - labels) ** 2).mean()}


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def train(paths: Paths, key: str, stop_at: int = -1, resume: bool = False) -> None:
    rows = [{"x": torch.tensor([i / 8]), "labels": torch.tensor([i / 4])} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=str(paths.state / "checkpoints"),
        max_steps=8,
        logging_steps=1,
        save_steps=2,
        per_device_train_batch_size=4,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    callbacks = [live_callback(paths, key), StopAt(stop_at)]
    trainer = Trainer(Line(), arguments, train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=resume)


def steps(client: Any, run_id: str, metric: str = "loss") -> list[int]:
    return [point.step for point in client.get_metric_history(run_id, metric)]


def left_open(paths: Paths) -> str:
    run_id: str = json.loads((paths.state / "live.json").read_text())["run_id"]
    return run_id


def test_a_resumed_training_continues_its_run_and_doubles_no_point(paths: Paths) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(paths, "a" * 64, stop_at=5)
    first = left_open(paths)
    client, _ = open_store()
    assert steps(client, first) == [1, 2, 3, 4, 5]

    train(paths, "a" * 64, resume=True)  # from the checkpoint of step 4: step 5 is made again
    assert left_open(paths) == first
    for metric in ("loss", "learning_rate", "grad_norm"):
        assert steps(client, first, metric) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert client.get_run(first).info.status == "RUNNING", "the report finishes it"


def test_a_run_left_by_another_training_is_ended_as_killed(paths: Paths) -> None:
    client, first = open_run(paths, "a", "first")
    _, second = open_run(paths, "b", "second")
    assert second != first
    assert client.get_run(first).info.status == "KILLED"
    assert left_open(paths) == second


@pytest.mark.parametrize("gone", ["deleted", "unknown", "finished"])
def test_a_run_that_cannot_go_on_is_replaced(paths: Paths, gone: str) -> None:
    client, first = open_run(paths, "a", "first")
    if gone == "deleted":
        client.delete_run(first)
    elif gone == "finished":
        client.set_terminated(first)
    else:
        (paths.state / "live.json").write_text(json.dumps({"key": "a", "run_id": "f" * 32}))
    _, second = open_run(paths, "a", "second")
    assert second != first


def test_a_closed_run_is_finished_and_not_continued(paths: Paths) -> None:
    client, first = open_run(paths, "a", "first")
    close_run(paths, client, first, "content")
    assert client.get_run(first).info.status == "FINISHED"
    assert open_run(paths, "a", "again")[1] != first


def test_a_report_stopped_after_it_closed_its_run_finds_it_again(paths: Paths) -> None:
    client, first = open_run(paths, "a", "first")
    close_run(paths, client, first, "content")
    assert open_run(paths, "a", "again", "content")[1] == first
    assert open_run(paths, "a", "again", "other content")[1] != first


def test_a_report_stopped_midway_continues_its_run_unless_something_has_changed(
    paths: Paths,
) -> None:
    client, first = open_run(paths, "a", "training")
    assert open_run(paths, "a", "report", "content")[1] == first
    assert open_run(paths, "a", "report", "content")[1] == first
    _, second = open_run(paths, "a", "report", "other content")
    assert second != first
    assert client.get_run(first).info.status == "KILLED"


def test_a_run_is_found_by_a_process_killed_before_it_knew_its_id(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loradag.tracking import live

    def killed(*arguments: Any) -> None:
        create_run(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(live, "create_run", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(paths, "a", "first")
    client, experiment_id = open_store()
    (run,) = client.search_runs([experiment_id])
    assert open_run(paths, "a", "again")[1] == run.info.run_id
    assert len(client.search_runs([experiment_id])) == 1


def test_a_given_run_is_used_and_none_is_made(
    paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, experiment_id = open_store()
    child = create_run(client, experiment_id, "child", {})
    monkeypatch.setenv("MLFLOW_RUN_ID", child)
    train(paths, "a" * 64)
    assert steps(client, child) == list(range(1, 9))
    assert [run.info.run_id for run in client.search_runs([experiment_id])] == [child]
    assert not (paths.state / "live.json").exists()


def test_tracking_that_fails_is_reported_once_and_training_goes_on(
    paths: Paths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:s3cret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    train(paths, "a" * 64)
    printed = capsys.readouterr().err
    assert printed.count("MLflow takes no live points") == 1
    assert "s3cret" not in printed
    assert Path(paths.state / "checkpoints/checkpoint-8").exists()
