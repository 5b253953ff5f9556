"""The train stage on a random model: what it learns, guards, repeats and resumes."""

import csv
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from loradag.config.problems import LoradagError
from loradag.data.rows import Row, open_writer, read_rows, schema, write_rows
from loradag.models.loading import load_base, load_quantized, load_tuned
from loradag.models.tokenizer import load_tokenizer
from loradag.training.guards import IGNORED
from loradag.training.labels import labelled
from stages.train import train
from tests.conftest import ROOT, run_stages
from tests.products import ProductsByDtype
from tests.training.conftest import copied, hashes


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


@pytest.mark.parametrize(("asked", "used"), [("auto", "sdpa"), ("eager", "eager")])
def test_the_report_names_the_attention_that_was_used(trained, tmp_path, asked, used) -> None:
    paths, config = copied(trained, tmp_path)
    short = replace(config.train, attention=asked, max_steps=1, warmup_steps=0)
    assert run_stages(paths, replace(config, train=short), "train")["train"]["attention"] == used


def test_two_runs_give_the_same_bytes_and_leave_no_checkpoint(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    run_stages(paths, config, "train")
    assert hashes(paths.adapter) == hashes(trained[0].adapter)
    assert paths.loss.read_bytes() == trained[0].loss.read_bytes()
    assert not list((paths.state / "checkpoints").glob("*"))


def test_at_the_start_the_adapter_changes_nothing(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    frozen = replace(config.train, learning_rate=1e-30, max_steps=1, warmup_steps=0)
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
    still = replace(exact, learning_rate=1e-7, max_steps=1, warmup_steps=0)
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
    one_step = replace(config.train, max_steps=1, warmup_steps=0)
    losses = {}
    for packing in (False, True):
        size = 1 if packing else 4  # all four rows in one packed row
        options = replace(one_step, packing=packing, packing_tokens=256, batch_size=size)
        dropless = replace(config.adapter, dropout=0.0)
        report = run_stages(paths, replace(config, train=options, adapter=dropless), "train")
        losses[packing] = report["train"]["final_loss"]
    assert sum(len(row.input_ids) for row in rows) <= 256
    assert math.isclose(losses[True], losses[False], rel_tol=1e-5)


@pytest.mark.parametrize("variant", ["lora", "none"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_product_of_a_training_is_in_the_dtype_that_the_report_names(
    trained, tmp_path, dtype, variant
) -> None:
    paths, config = copied(trained, tmp_path)
    config = replace(config, adapter=replace(config.adapter, variant=variant))
    options = replace(config.train, dtype=dtype, max_steps=2, warmup_steps=0, packing=False)
    with ProductsByDtype() as products:
        report = run_stages(paths, replace(config, train=options), "train")["train"]
    assert report["dtype"] == dtype
    assert set(products.found) == {getattr(torch, dtype)}


def test_accumulation_takes_the_mean_over_tokens(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    losses = []
    for size, accumulation in ((4, 1), (2, 2), (1, 4)):
        options = replace(
            config.train,
            max_steps=1,
            warmup_steps=0,
            batch_size=size,
            gradient_accumulation=accumulation,
        )
        dropless = replace(config.adapter, dropout=0.0)
        report = run_stages(paths, replace(config, train=options, adapter=dropless), "train")
        losses.append(report["train"]["final_loss"])
    assert all(math.isclose(loss, losses[0], rel_tol=1e-5) for loss in losses)


def test_loss_is_taken_of_the_tokens_that_the_option_names(trained, tmp_path) -> None:
    paths, _, _ = trained
    rows = read_rows(paths.prepared / "train.parquet")
    eos = load_tokenizer(paths.base).eos_token_id
    chat = replace(rows[0], input_ids=[5, 6, 7, eos], completion_mask=[0, 0, 0, 1])
    write_rows(tmp_path / "rows.parquet", [*rows, replace(chat, assistant_mask=[0, 1, 0, 1])])
    rows = read_rows(tmp_path / "rows.parquet")
    for loss, name in (("completion", "completion_mask"), ("assistant", "assistant_mask")):
        data = labelled(rows, loss, tmp_path / f"{loss}.arrow")
        for row, labels in zip(rows, data["labels"], strict=True):
            mask = getattr(row, name)
            assert labels == [
                id if m else IGNORED for id, m in zip(row.input_ids, mask, strict=True)
            ]
            assert labels[-1] == eos
    full = labelled(rows, "full", tmp_path / "full.arrow")
    assert full["labels"][:] == full["input_ids"][:] == [row.input_ids for row in rows]


# From prepared rows to packed ones, with the most memory of its own that the process held.
PACKS = """
import re, sys
from pathlib import Path
from trl import pack_dataset
from loradag.data.rows import read_rows
from loradag.training.labels import labelled

def held():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

folder = Path(sys.argv[1])
few, many = (
    (len(pack_dataset(labelled(read_rows(folder / f"{name}.parquet"), "full",
                               folder / f"{name}.arrow"), 1024, "bfd")), held())
    for name in ("few", "many")
)
print(*few, *many)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_starting_to_train_on_more_rows_takes_no_more_memory(tmp_path) -> None:
    """Mapped pages do not count: the system takes them back when it needs them."""
    group, tokens = 1000, 100
    row = Row("", "", "", list(range(tokens)), [1] * tokens, [1] * tokens, [1] * tokens)
    table = pa.Table.from_pylist([vars(row)] * group, schema())
    for name, groups in (("few", 2), ("many", 100)):
        with open_writer(tmp_path / f"{name}.parquet") as writer:
            for _ in range(groups):
                writer.write_table(table)
    found = subprocess.run(
        [sys.executable, "-c", PACKS, str(tmp_path)], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    few_packed, few, many_packed, many = map(int, found.stdout.split())
    assert (few_packed, many_packed) == (200, 10_000)
    column = 100 * group * tokens * 4  # bytes of the token ids alone
    assert many - few < column / 4


def test_a_target_that_is_not_there_is_one_clear_error(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    adapter = replace(config.adapter, target_modules=["no_proj"])
    with pytest.raises(LoradagError, match=r"adapter\.target_modules.*no_proj"):
        train(paths, adapter, config.train, config.launch, 0)
    adapter = replace(config.adapter, modules_to_save=["lm_head", "nosuch"])
    with pytest.raises(LoradagError, match=r"adapter\.modules_to_save names 'nosuch'"):
        train(paths, adapter, config.train, config.launch, 0)


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ".*(q_proj|lm_head)"])
def test_an_adapter_of_the_output_layer_is_one_clear_error(trained, tmp_path, targets) -> None:
    paths, config = copied(trained, tmp_path)
    adapter = replace(config.adapter, target_modules=targets)
    with pytest.raises(LoradagError, match=r"target_modules: names lm_head.*modules_to_save=\[lm_"):
        train(paths, adapter, config.train, config.launch, 0)


def test_another_tokenizer_than_the_rows_were_made_with_is_refused(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    tokenizer = load_tokenizer(paths.base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(paths.base)
    with pytest.raises(LoradagError, match="token contract"):
        run_stages(paths, config, "train")
