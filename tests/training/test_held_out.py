"""Evaluation during training: what it measures, what it decides, and that it changes nothing."""

import csv
import itertools
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback

from loradag.config.problems import LoradagError
from loradag.config.train import EarlyStopping
from loradag.data.rows import read_rows, write_rows
from loradag.models.loading import load_quantized, load_tuned
from loradag.training.guards import Guards
from loradag.training.method import Trainable
from tests.conftest import run_stages
from tests.training.conftest import copied, hashes


def curve(paths) -> dict[int, float]:
    with paths.eval_loss.open() as file:
        return {int(row["step"]): float(row["eval_loss"]) for row in csv.DictReader(file)}


def measured(paths, rows: int) -> float:
    """Nats a token of the saved adapter on the first held-out rows, by a plain loop."""
    model = load_tuned(paths, load_quantized(paths, torch.float32))
    total, tokens = 0.0, 0
    for row in read_rows(paths.prepared / "eval.parquet")[:rows]:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        tokens += ids.shape[1] - 1
    return total / tokens


@pytest.fixture
def project(trained, tmp_path):
    """A project up to `train`, whose training computes in float32 and soon overfits two rows."""
    paths, config = copied(trained, tmp_path)
    options = replace(
        config.train, dtype="float32", scheduler="constant", learning_rate=0.03, warmup_steps=0,
        max_rows=2, batch_size=2, eval_steps=2, checkpoint_steps=2, eval_rows=5,
    )  # fmt: skip
    return paths, replace(config, train=options)


def with_train(config, **options):
    return replace(config, train=replace(config.train, **options))


def test_the_held_out_loss_is_that_of_the_saved_model_over_tokens(project) -> None:
    paths, config = project
    report = run_stages(paths, config, "train")["train"]
    assert list(curve(paths)) == [2, 4, 6, 8]
    assert report["kept_step"] == 8
    assert not report["stopped_early"]
    assert report["eval_loss"] == curve(paths)[8] == pytest.approx(measured(paths, 5), rel=1e-5)


def test_held_out_rows_without_a_token_to_score_are_refused_before_the_training(project) -> None:
    paths, config = project
    rows = [
        replace(row, completion_mask=[0] * len(row.input_ids))
        for row in read_rows(paths.prepared / "eval.parquet")
    ]
    write_rows(paths.prepared / "eval.parquet", rows)
    with pytest.raises(LoradagError, match="no token of the held-out rows is scored"):
        run_stages(paths, with_train(config, loss="completion"), "train")


def test_the_held_out_loss_can_be_watched(project, monkeypatch) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 5:
                raise KeyboardInterrupt

    paths, config = project
    monkeypatch.setattr("loradag.tracking.live.live_callback", lambda *_: Stop())
    with pytest.raises(KeyboardInterrupt):
        run_stages(paths, config, "train")
    assert list(curve(paths)) == [2, 4]


def test_evaluating_changes_nothing(project) -> None:
    paths, config = project
    run_stages(paths, config, "train")
    evaluated = hashes(paths.adapter), paths.loss.read_bytes()
    run_stages(paths, with_train(config, eval_steps=None), "train")
    assert list(curve(paths)) == [8], "the last step is evaluated in any case"
    assert (hashes(paths.adapter), paths.loss.read_bytes()) == evaluated


def test_the_weights_with_the_lowest_held_out_loss_are_kept(project) -> None:
    paths, config = project
    report = run_stages(paths, with_train(config, keep="best"), "train")["train"]
    losses = curve(paths)
    best = min(losses, key=losses.__getitem__)
    assert best < 8, "the last weights are no longer the best: this test needs overfitting"
    assert report["kept_step"] == best
    assert report["eval_loss"] == losses[best] == pytest.approx(measured(paths, 5), rel=1e-5)
    assert report["steps"] == 8


def test_the_last_weights_are_kept_where_they_are_the_best(project) -> None:
    paths, config = project
    slow = with_train(config, keep="best", learning_rate=1e-3)
    report = run_stages(paths, slow, "train")["train"]
    assert report["kept_step"] == 8
    assert report["eval_loss"] == min(curve(paths).values())
    assert report["eval_loss"] == pytest.approx(measured(paths, 5), rel=1e-5)


def test_it_stops_early_at_a_known_step(project) -> None:
    """No loss falls by 100 nats: the evaluations after the first are without improvement."""
    paths, config = project
    stopping = EarlyStopping(patience=2, threshold=100.0)
    report = run_stages(paths, with_train(config, early_stopping=stopping), "train")["train"]
    assert report["steps"] == 6
    assert report["stopped_early"]
    assert list(curve(paths)) == [2, 4, 6]


@pytest.mark.parametrize(("patience", "last"), [(None, 8), (2, 6)])
def test_the_last_step_is_logged_whatever_the_interval(project, patience, last) -> None:
    paths, config = project
    every = with_train(config, early_stopping=EarlyStopping(patience, 100.0))
    run_stages(paths, every, "train")
    losses = losses_by_step(paths)
    sparse = with_train(every, logging_steps=5, checkpoint_steps=5)
    report = run_stages(paths, sparse, "train")["train"]
    since = range(6, last + 1)
    assert list(losses_by_step(paths)) == [1, 5, last]
    assert report["final_loss"] == pytest.approx(sum(losses[at] for at in since) / len(since))


def losses_by_step(paths) -> dict[int, float]:
    with paths.loss.open() as file:
        return {int(row["step"]): float(row["loss"]) for row in csv.DictReader(file)}


def test_a_resumed_training_has_the_speed_of_the_tokens_that_it_read(project, monkeypatch) -> None:
    paths, config = project
    config = with_train(config, max_rows=None, packing=False)  # rows of different lengths
    before = run_stages(paths, with_train(config, max_steps=4), "train")["train"]
    with monkeypatch.context() as patched:
        patched.setattr(Guards, "on_log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_stages(paths, config, "train")
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # a second a call
    monkeypatch.setattr("loradag.training.fit.time", clock)
    resumed = run_stages(paths, config, "train")["train"]
    assert resumed["resumed_from_step"] == 4
    assert resumed["tokens_per_second"] == resumed["tokens"] - before["tokens"]


def interrupt(self, args, state, control, **_) -> None:
    if state.global_step == 5:
        raise KeyboardInterrupt


@pytest.mark.parametrize("moment", ["at a step", "while it saves"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_resumed_it_keeps_its_curves_its_patience_and_its_best(
    project, monkeypatch, moment, keep
) -> None:
    paths, config = project
    config = with_train(config, keep=keep, early_stopping=EarlyStopping(2, 100.0))
    complete = run_stages(paths, config, "train")["train"]
    expected = hashes(paths.adapter), paths.loss.read_bytes(), paths.eval_loss.read_bytes()

    with monkeypatch.context() as patched:
        if moment == "at a step":
            patched.setattr(Guards, "on_log", interrupt)
        else:

            def interrupted(self, folder) -> None:
                raise KeyboardInterrupt

            patched.setattr(Trainable, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_stages(paths, config, "train")
    resumed = run_stages(paths, config, "train")["train"]
    assert resumed["resumed_from_step"] == 4
    assert (hashes(paths.adapter), paths.loss.read_bytes(), paths.eval_loss.read_bytes()) == (
        expected
    )
    for key in ("steps", "kept_step", "eval_loss", "stopped_early", "tokens"):
        assert resumed[key] == complete[key]
