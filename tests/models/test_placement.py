"""A model that its device has no room for computes the same, with its layers spread."""

import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from loradag.config.problems import LoradagError
from loradag.models import placement
from loradag.models.loading import load_model, load_tuned
from loradag.models.placement import change_weight, is_offloaded, weight_bytes
from loradag.quantization.conversion import quantize_checkpoint
from loradag.runtime import Paths, process_memory
from tests.quantization.options import options

IDS = torch.arange(40)[None]


@pytest.fixture
def small_memory(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for half of the tiny model in float32."""
    half = placement.SPARE * weight_bytes(tiny_base, torch.float32) / 2
    monkeypatch.setattr(placement, "available_bytes", lambda: int(half))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def test_an_offloaded_model_computes_the_same(tiny_base, monkeypatch, request):
    expected = load_model(tiny_base, torch.float32)
    assert not is_offloaded(expected)
    request.getfixturevalue("small_memory")
    spread = load_model(tiny_base, torch.float32)
    assert is_offloaded(spread)
    assert any(p.is_meta for p in spread.parameters()), "nothing is on disk"
    assert torch.equal(logits(spread), logits(expected))


def test_a_model_to_train_is_never_offloaded(tiny_base, small_memory):
    assert not is_offloaded(load_model(tiny_base, torch.float32, to_train=True))


def save_adapter(base: Path, folder: Path, **config) -> None:
    torch.manual_seed(0)
    model = load_model(base, torch.float32, to_train=True)
    config = {"target_modules": "all-linear"} | config
    adapter = LoraConfig(r=3, init_lora_weights=False, task_type="CAUSAL_LM", **config)
    get_peft_model(model, adapter).save_pretrained(folder)


def test_an_adapter_on_an_offloaded_model_computes_the_same(
    tiny_base, tmp_path, monkeypatch, request
):
    monkeypatch.chdir(tmp_path)
    paths = Paths(tmp_path)
    save_adapter(tiny_base, paths.adapter)
    expected = logits(load_tuned(paths, load_model(tiny_base, torch.float32)))
    before = sorted(tmp_path.rglob("*"))
    request.getfixturevalue("small_memory")
    spread = load_model(tiny_base, torch.float32)
    assert is_offloaded(spread)
    assert torch.equal(logits(load_tuned(paths, spread)), expected)
    assert sorted(tmp_path.rglob("*")) == before, "weights were written once more"


def test_an_adapter_that_cannot_be_put_on_an_offloaded_model_is_refused(
    tiny_base, tmp_path, small_memory
):
    paths = Paths(tmp_path)
    save_adapter(tiny_base, paths.adapter, use_dora=True)
    with pytest.raises(LoradagError, match=r"no room .*lora_magnitude_vector"):
        load_tuned(paths, load_model(tiny_base, torch.float32))


def test_adapted_experts_cannot_be_put_on_an_offloaded_model(tiny_base, tmp_path, small_memory):
    paths = Paths(tmp_path)
    save_adapter(tiny_base, paths.adapter, target_modules=[], target_parameters=["up_proj.weight"])
    with pytest.raises(LoradagError, match=r"no room .*up_proj\.weight"):
        load_tuned(paths, load_model(tiny_base, torch.float32))


def test_a_quantized_model_stays_on_its_device(tiny_base, tmp_path, small_memory, monkeypatch):
    quantize_checkpoint(tiny_base, tmp_path, options("nf4"))
    monkeypatch.setattr(placement, "available_bytes", lambda: 1)
    assert not is_offloaded(load_model(tmp_path, torch.float32))


def test_scratch_folders_are_deleted(tiny_base, tmp_path, small_memory, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = load_model(tiny_base, torch.float32)
    assert len(os.listdir(tmp_path)) == 1
    del model
    import gc

    gc.collect()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "group", "limit", "usage", "prefix"),
    [
        ("4:memory:/a/b", "memory/a", "limit_in_bytes", "usage_in_bytes", "total_"),
        ("4:memory:/on/the/host", "memory", "limit_in_bytes", "usage_in_bytes", "total_"),
        ("0::/a/b", "a/b", "max", "current", ""),
    ],
)
def test_the_limit_of_a_container_counts(line, group, limit, usage, prefix, tmp_path, monkeypatch):
    folder = tmp_path / group
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"memory.{limit}").write_text("3000\n")
    (folder / f"memory.{usage}").write_text("2000\n")
    stat = f"{prefix}inactive_file 300\n{prefix}active_file 200\nother 5\n"
    (folder / "memory.stat").write_text(stat)
    (tmp_path / "membership").write_text(f"9:cpu:/\n{line}\n")
    monkeypatch.setattr(process_memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(process_memory, "MEMBERSHIP", tmp_path / "membership")
    assert process_memory.available_bytes() == 1500


def test_a_changed_weight_of_an_offloaded_layer_is_used(tiny_base, request):
    def halved(model: torch.nn.Module) -> torch.Tensor:
        for layer in model.model.layers:
            change_weight(layer.mlp.up_proj, lambda weight: weight / 2)
        return logits(model)

    expected = halved(load_model(tiny_base, torch.float32))
    assert not torch.equal(expected, logits(load_model(tiny_base, torch.float32)))
    request.getfixturevalue("small_memory")
    spread = load_model(tiny_base, torch.float32)
    assert spread.model.layers[-1].mlp.up_proj.weight.is_meta
    assert torch.equal(halved(spread), expected)
