"""Reading and writing of safetensors: which files count, the same bytes, the library's format."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loradag.checkpoints.model_files import copy_all_but_weights
from loradag.checkpoints.safetensors_reader import (
    Entry,
    count_parameters,
    read_entries,
    read_metadata,
    read_tensors,
    weight_files,
)
from loradag.checkpoints.safetensors_writer import AppendingWriter, ShardWriter, split_into_shards
from loradag.config.problems import LoradagError
from loradag.models.loading import load_model

STATE = {
    "c.odd": torch.arange(7, dtype=torch.uint8),
    "a.wide": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "b.half": torch.ones(2, 2, dtype=torch.bfloat16),
    "d.flag": torch.tensor([True, False]),
    "e.scalar": torch.tensor(3.0),
}


@pytest.fixture
def sharded(tiny_base, tmp_path):
    """The tiny model in several files, and once more in `consolidated.safetensors`."""
    folder = tmp_path / "sharded"
    load_model(tiny_base, torch.float32).save_pretrained(folder, max_shard_size="100KB")
    shutil.copy(tiny_base / "model.safetensors", folder / "consolidated.safetensors")
    return folder


def test_files_outside_the_index_are_not_read_a_second_time(sharded, tiny_base):
    assert len(weight_files(sharded)) > 1
    assert "consolidated.safetensors" not in weight_files(sharded)
    assert count_parameters(sharded) == count_parameters(tiny_base) == 139_584
    one, other = dict(read_tensors(sharded)), dict(read_tensors(tiny_base))
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_single_file_wins_over_an_index_as_in_transformers(sharded, tmp_path):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in read_tensors(sharded)}
    save_file(zeros, sharded / "model.safetensors", {"format": "pt"})
    assert weight_files(sharded) == ["model.safetensors"]
    assert not load_model(sharded, torch.float32).model.norm.weight.any()


def test_a_missing_shard_is_named(sharded):
    gone = sharded / weight_files(sharded)[1]
    gone.unlink()
    with pytest.raises(LoradagError, match=rf"{gone.name}: is missing, though"):
        read_entries(sharded)


def test_a_folder_without_weights(tmp_path):
    assert weight_files(tmp_path) == []
    with pytest.raises(LoradagError, match=r"model\.safetensors: is missing"):
        read_entries(tmp_path)


@pytest.mark.parametrize("size", ["1GB", 40])
def test_what_is_appended_reads_back(tmp_path, size):
    with AppendingWriter(tmp_path, size) as writer:
        for name, tensor in STATE.items():
            writer.write(name, tensor)
        writer.metadata["z"] = "last"
        writer.metadata["é"] = "first"
    assert (len(weight_files(tmp_path)) > 1) == (size == 40)
    found = dict(read_tensors(tmp_path))
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)
    for file in weight_files(tmp_path):
        with safe_open(tmp_path / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt", "z": "last", "é": "first"}
    assert read_metadata(tmp_path)["z"] == "last"
    assert {file.name for file in tmp_path.iterdir()} <= {
        *weight_files(tmp_path),
        "model.safetensors.index.json",
    }


def test_both_writers_and_the_library_write_the_same(tmp_path):
    appended, laid_out = tmp_path / "appended", tmp_path / "laid_out"
    appended.mkdir()
    laid_out.mkdir()
    with AppendingWriter(appended, 60) as writer:
        for name, tensor in sorted(STATE.items(), reverse=True):
            writer.write(name, tensor)
    entries = read_entries(appended)
    with ShardWriter(laid_out, split_into_shards(entries, 60)) as layout_writer:
        for name, tensor in STATE.items():
            layout_writer.write(name, tensor)
    names = sorted(file.name for file in appended.iterdir())
    assert names == sorted(file.name for file in laid_out.iterdir())
    for name in names:
        assert (appended / name).read_bytes() == (laid_out / name).read_bytes()
    for file in weight_files(appended):
        save_file(load_file(appended / file), tmp_path / file, {"format": "pt"})
        assert (tmp_path / file).read_bytes()[8:].rstrip() == (
            (appended / file).read_bytes()[8:].rstrip()
        )
    sizes = json.loads((appended / "model.safetensors.index.json").read_text())["metadata"]
    assert sizes["total_size"] == sum(entry.bytes for entry in entries.values())


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), AppendingWriter(tmp_path) as writer:  # noqa: PT012
        writer.write("a", torch.ones(3))
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_copy_is_what_describes_the_model_and_its_licences(sharded, tmp_path):
    described = {"chat_template.jinja", "tokenizer.model", "LICENSE.txt", "USE_POLICY.md", "NOTICE"}
    others = {"pin.json", "notes.txt", "rows.json", "todo.jinja"}
    for name in described | others:
        (sharded / name).write_text("{}")
    (sharded / "LICENSES").mkdir()
    target = tmp_path / "copy"
    target.mkdir()
    copy_all_but_weights(sharded, target)
    assert {file.name for file in target.iterdir()} == described | {
        "config.json",
        "generation_config.json",
    }


def test_a_single_file_of_another_name_is_found(tmp_path):
    """Some models have one file, named as the first of several, and an index."""
    name = "model-00001-of-00001.safetensors"
    layout = {"a.wide": Entry(name, "F32", (3, 5))}
    with ShardWriter(tmp_path, layout) as writer:
        writer.write("a.wide", STATE["a.wide"])
    assert read_entries(tmp_path) == layout
