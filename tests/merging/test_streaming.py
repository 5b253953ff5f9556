"""The streaming merge against peft's own `merge_and_unload`, and against peft's forward pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loradag.config.problems import LoradagError
from loradag.merging.streaming import merge_streaming
from loradag.training.experts import expert_matrices
from tests.merging.conftest import ARCHITECTURES, EXPERTS

TOKENS = torch.arange(24).reshape(2, 12) * 5


def merged(base: Path, adapter: Path, folder: Path, dtype: str = "auto", **options: Any) -> Any:
    folder.mkdir()
    untied = merge_streaming(base, adapter, folder, dtype=dtype, **options)
    config = json.loads((base / "config.json").read_text())
    config["tie_word_embeddings"] &= not untied
    (folder / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all"},
        {"modules_to_save": ["lm_head"]},
        {
            "rank_pattern": {"down_proj": 2, "c_proj": 2},
            "alpha_pattern": {"down_proj": 3, "c_proj": 3},
        },
    ],
    ids=lambda options: next(iter(options), "lora"),
)
def test_equals_peft(
    save_base: Callable[..., Path],
    save_adapter: Callable[..., Any],
    tmp_path: Path,
    architecture: str,
    tied: bool,
    options: dict[str, Any],
) -> None:
    base = save_base(architecture, tied, shard="20KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    model = save_adapter(base, tmp_path / "adapter", **options)
    ours = merged(base, tmp_path / "adapter", tmp_path / "merged").state_dict()
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("architecture", EXPERTS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"gate_up_proj": 2}},
        {"target_modules": ["q_proj"], "modules_to_save": ["experts"]},
        {"target_parameters": None},  # peft's own choice, with twice the rank for two projections
    ],
    ids=str,
)
def test_experts_equal_pefts(
    save_base: Callable[..., Path],
    save_adapter: Callable[..., Any],
    tmp_path: Path,
    architecture: str,
    options: dict[str, Any],
) -> None:
    base = save_base(architecture, tied=False, shard="20KB")
    before = AutoModelForCausalLM.from_pretrained(base)
    matrices = expert_matrices(before)
    chosen = {"target_modules": ["q_proj"], "target_parameters": matrices}
    if "modules_to_save" in options or "target_parameters" in options:
        chosen = {}
    model = save_adapter(base, tmp_path / "adapter", **(chosen | options))
    ours = merged(base, tmp_path / "adapter", tmp_path / "merged").state_dict()
    theirs = model.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    changed = {name for name in matrices if not torch.equal(ours[name], before.get_parameter(name))}
    assert changed or architecture == "gpt_oss"
    if chosen:
        assert changed == set(matrices)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["lm_head", "q_proj"]},
        {"target_modules": ["embed_tokens", "lm_head"]},
        {"target_modules": ["embed_tokens"], "use_dora": True},
        {"modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
def test_an_update_of_one_tied_embedding_unties_them(
    save_base: Callable[..., Path],
    save_adapter: Callable[..., Any],
    tmp_path: Path,
    options: dict[str, Any],
) -> None:
    """peft's own merge adds the update to the shared storage, hence to both; the forward pass that
    was trained is what counts."""
    base = save_base("llama", tied=True)
    model = save_adapter(base, tmp_path / "adapter", **options)
    with torch.no_grad():
        trained = model(TOKENS).logits
        ours = merged(base, tmp_path / "adapter", tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(ours, trained, rtol=0, atol=2e-6)


def test_converted_pissa(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = save_base()
    residual = AutoModelForCausalLM.from_pretrained(base)
    model = get_peft_model(
        residual, LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa")
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "start")
    model.peft_config["default"].init_lora_weights = "pissa"
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(LoradagError, match="residual"):
        merge_streaming(base, tmp_path / "raw", tmp_path, dtype="auto")
    model.save_pretrained(
        tmp_path / "adapter", path_initial_model_for_weight_conversion=str(tmp_path / "start")
    )
    with torch.no_grad():
        trained = model.eval()(TOKENS).logits
        ours = merged(base, tmp_path / "adapter", tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(ours, trained, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounds_once(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path, dtype: str
) -> None:
    base = save_base(dtype=dtype)
    save_adapter(base, tmp_path / "adapter")
    kept = merged(base, tmp_path / "adapter", tmp_path / "kept").state_dict()
    merged(base, tmp_path / "adapter", tmp_path / "full", "float32")
    full = load_file(tmp_path / "full" / "model.safetensors")
    for name, weight in full.items():
        assert weight.dtype == torch.float32
        assert torch.equal(kept[name], weight.to(getattr(torch, dtype)))


def test_merges_into_other_weights(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    base = save_base()
    save_adapter(base, tmp_path / "adapter")
    zeros = (
        (name, torch.zeros_like(t)) for name, t in load_file(base / "model.safetensors").items()
    )
    update = merged(base, tmp_path / "adapter", tmp_path / "update", weights=zeros).state_dict()
    full = merged(base, tmp_path / "adapter", tmp_path / "full").state_dict()
    original = load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(full[name], original[name] + update[name])
    assert not update["model.norm.weight"].any()


def test_same_inputs_same_bytes_and_inputs_stay(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    base = save_base(shard="20KB")
    save_adapter(base, tmp_path / "adapter")
    before = {file: file.read_bytes() for file in sorted(tmp_path.rglob("*.*"))}
    for name in ("one", "two"):
        merged(base, tmp_path / "adapter", tmp_path / name)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert "model.safetensors.index.json" in names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert before == {file: file.read_bytes() for file in before}


def test_a_checkpoint_that_leaves_out_the_prefix(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    """The hub's GPT-2 calls its weights `h.0.…`, the model `transformer.h.0.…`."""
    base = save_base("gpt2")
    model = save_adapter(base, tmp_path / "adapter")
    short = tmp_path / "short"
    shutil.copytree(base, short)
    weights = load_file(base / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    save_file(renamed, short / "model.safetensors", {"format": "pt"})
    ours = merged(short, tmp_path / "adapter", tmp_path / "merged").state_dict()
    theirs = model.merge_and_unload().state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_adapter_of_another_base_is_refused(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    base = save_base("llama")
    save_adapter(base, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = {name.replace("layers.1", "layers.7"): t for name, t in load_file(path).items()}
    save_file(weights, path)
    (tmp_path / "merged").mkdir()
    with pytest.raises(LoradagError, match=r"layers\.7.*does not have"):
        merge_streaming(base, tmp_path / "adapter", tmp_path / "merged", dtype="auto")


def test_overflow_is_refused(
    save_base: Callable[..., Path], save_adapter: Callable[..., Any], tmp_path: Path
) -> None:
    base = save_base()
    save_adapter(base, tmp_path / "adapter", lora_alpha=1e9)
    (tmp_path / "merged").mkdir()
    with pytest.raises(LoradagError, match=r"finite.*merge\.dtype"):
        merge_streaming(base, tmp_path / "adapter", tmp_path / "merged", dtype="float16")
