"""The train stage on a random model: what it learns, guards, repeats and resumes."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from loradag.config.composition import compose, write_params
from loradag.config.problems import LoradagError
from loradag.data.rows import read_rows, write_rows
from loradag.models.loading import load_base, load_quantized, load_tuned
from loradag.models.pinning import sha256
from loradag.models.tokenizer import load_tokenizer
from loradag.training.guards import IGNORED, check_labels
from loradag.training.resume import last_checkpoint
from loradag.training.trainer import labelled
from stages.train import train
from tests.conftest import ROOT, run_stages


def hashes(folder) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def copied(trained, tmp_path):
    """A fresh project with the inputs of `train` and nothing after them."""
    paths, config, _ = trained
    mine = replace(paths, root=tmp_path)
    for name in ("base", "prepared", "quantized"):
        shutil.copytree(getattr(paths, name), getattr(mine, name))
    return mine, config


def test_the_report_counts_what_was_trained(trained) -> None:
    paths, config, reports = trained
    report = reports["train"]
    # r (in + out) for q, k, v, o, gate, up and down of both layers
    layer = (64 + 64) + (64 + 32) * 2 + (64 + 64) + (64 + 128) * 3
    assert report["trainable_parameters"] == 2 * 8 * layer
    assert report["total_parameters"] == 139_584 + 2 * 8 * layer
    assert report["steps"] == config.train.max_steps
    assert report["resumed_from_step"] == 0
    with paths.loss.open() as file:
        curve = list(csv.DictReader(file))
    assert [int(point["step"]) for point in curve] == list(range(1, 9))
    assert float(curve[-1]["loss"]) == report["final_loss"]
    # A random model starts at the loss of a uniform guess.
    assert math.isclose(float(curve[0]["loss"]), math.log(1024), rel_tol=0.02)


def test_two_runs_give_the_same_bytes_and_leave_no_checkpoint(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    run_stages(paths, config, "train")
    assert hashes(paths.adapter) == hashes(trained[0].adapter)
    assert paths.loss.read_bytes() == trained[0].loss.read_bytes()
    assert not list((paths.state / "checkpoints").glob("*"))


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(trained, tmp_path) -> None:
    paths, _ = copied(trained, tmp_path)
    write_params(compose(["experiment=smoke", "train.checkpoint_steps=1"]), tmp_path)
    command = [sys.executable, "-m", "stages.train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    # One whole checkpoint, and the next one being written.
    while not list(paths.state.glob("checkpoints/*/checkpoint-2/*")):
        assert time.monotonic() < deadline, process.stderr.read().decode()
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not paths.adapter.exists()

    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    report = json.loads(paths.report("train").read_text())
    assert 0 < report["resumed_from_step"] < 8
    assert hashes(paths.adapter) == hashes(trained[0].adapter)
    assert paths.loss.read_bytes() == trained[0].loss.read_bytes()


def test_a_checkpoint_cut_short_is_passed_over(tmp_path) -> None:
    for step, state in ((2, "{}"), (10, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


def test_at_the_start_the_adapter_changes_nothing(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    frozen = replace(config.train, learning_rate=1e-30, max_steps=1)
    run_stages(paths, replace(config, train=frozen), "train")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = load_quantized(paths, torch.float32)(ids).logits
        after = load_tuned(paths, load_quantized(paths, torch.float32))(ids).logits
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["rslora", "dora", "pissa", "loftq"])
def test_every_variant_trains_and_stands_on_the_base_as_it_was(trained, tmp_path, variant) -> None:
    paths, config = copied(trained, tmp_path)
    if variant == "pissa":
        shutil.rmtree(paths.quantized)
        paths.quantized.mkdir()
        (paths.quantized / "scheme.json").write_text('{"scheme": "none"}')
    adapter = replace(config.adapter, variant=variant, dropout=0.0)
    # Equality needs float32: dora takes its magnitudes from weights in the dtype of training.
    exact = replace(config.train, dtype="float32")
    still = replace(exact, learning_rate=1e-30, max_steps=1)
    for options in (still, replace(exact, max_steps=2)):
        run_stages(paths, replace(config, adapter=adapter, train=options), "train")
        tuned = load_tuned(paths, load_quantized(paths, torch.float32))
        ids = torch.tensor([[5, 6, 7, 8]])
        with torch.no_grad():
            after = tuned(ids).logits
            before = load_base(paths, torch.float32)(ids).logits
            quantized = load_quantized(paths, torch.float32)(ids).logits
        if options is still:  # loftq starts nearer to the base than the quantized base is
            if variant == "loftq":
                assert (after - before).norm() < (quantized - before).norm()
            else:
                torch.testing.assert_close(after, quantized, rtol=0, atol=2e-5)
        else:
            assert (after - quantized).abs().max() > 1e-4


def test_packed_rows_do_not_see_each_other(trained, tmp_path, monkeypatch) -> None:
    """Packing changes which rows share a step, not what a row's tokens contribute."""
    paths, config = copied(trained, tmp_path)
    rows = read_rows(paths.prepared / "train.parquet")[:4]
    write_rows(paths.prepared / "train.parquet", rows)
    one_step = replace(config.train, max_steps=1, batch_size=4)
    losses = {}
    for packing in (False, True):
        size = 1 if packing else 4  # all four rows in one packed row
        options = replace(
            one_step, packing=packing, packing_tokens=256, batch_size=size, max_steps=1
        )
        dropless = replace(config.adapter, dropout=0.0)
        report = run_stages(paths, replace(config, train=options, adapter=dropless), "train")
        losses[packing] = report["train"]["final_loss"]
    assert sum(len(row.input_ids) for row in rows) <= 256
    assert math.isclose(losses[True], losses[False], rel_tol=1e-5)


def test_accumulation_takes_the_mean_over_tokens(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    losses = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        options = replace(
            config.train, max_steps=1, batch_size=size, gradient_accumulation=accumulation
        )
        dropless = replace(config.adapter, dropout=0.0)
        report = run_stages(paths, replace(config, train=options, adapter=dropless), "train")
        losses.append(report["train"]["final_loss"])
    assert all(math.isclose(loss, losses[0], rel_tol=1e-5) for loss in losses)


def test_completion_only_loss_ignores_the_prompt_and_keeps_eos(trained) -> None:
    paths, _, _ = trained
    rows = read_rows(paths.prepared / "train.parquet")
    eos = load_tokenizer(paths.base).eos_token_id
    data = labelled(rows, "completion", eos)
    for row, labels in zip(rows, data["labels"], strict=True):
        assert [label != IGNORED for label in labels] == [bool(m) for m in row.completion_mask]
        assert labels[-1] == eos


def test_labels_that_train_nothing_are_refused() -> None:
    with pytest.raises(LoradagError, match="no token is trained"):
        check_labels([[IGNORED, IGNORED]], 2)
    with pytest.raises(LoradagError, match="EOS is trained in no row"):
        check_labels([[5, 6], [IGNORED, 7]], 2)
    check_labels([[5, 6], [IGNORED, 2]], 2)


def test_a_loss_that_is_nan_stops_the_stage(trained, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    paths, config = copied(trained, tmp_path)
    weights = load_file(paths.quantized / "model.safetensors")
    norm = next(name for name in weights if "norm" in name)
    weights[norm] = torch.full_like(weights[norm], float("nan"))
    save_file(weights, paths.quantized / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoradagError, match=r"the loss is nan at step 1\. Lower"):
        run_stages(paths, config, "train")
    assert not paths.adapter.exists()


def test_a_target_that_is_not_there_is_one_clear_error(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    adapter = replace(config.adapter, target_modules=["no_proj"])
    with pytest.raises(LoradagError, match=r"adapter\.target_modules.*no_proj"):
        train(paths, adapter, config.train, 0)
    adapter = replace(config.adapter, modules_to_save=["lm_head", "nosuch"])
    with pytest.raises(LoradagError, match=r"adapter\.modules_to_save names 'nosuch'"):
        train(paths, adapter, config.train, 0)


def test_another_tokenizer_than_the_rows_were_made_with_is_refused(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    tokenizer = load_tokenizer(paths.base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(paths.base)
    with pytest.raises(LoradagError, match="token contract"):
        run_stages(paths, config, "train")
