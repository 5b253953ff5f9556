"""compressed-tensors: what is stored, that it loads, and what is refused before training."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loradag.checkpoints.model_files import NOTE
from loradag.config.problems import ConfigError, LoradagError
from loradag.export.compressed import PRESETS, plan_compression, write_compressed
from loradag.export.feasibility import check_feasible
from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.runtime import Paths
from tests.architectures import save_family
from tests.conftest import run_stages, smoke_config

LAYER = "model.layers.0.mlp.down_proj"


def write(merged: Path, folder: Path, option: str) -> dict[str, torch.Tensor]:
    write_compressed(merged, folder, option, "5GB")
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("option", PRESETS)
def test_transformers_restores_the_rounded_weights(
    exportable: Paths, tmp_path: Path, option: str
) -> None:
    write(exportable.merged, tmp_path / "out", option)
    merged = load_file(exportable.merged / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    with torch.inference_mode():
        loaded(torch.tensor([[1, 2]]))  # the first pass dequantises
    compression = plan_compression(exportable.merged, option)
    assert len(compression.layers) == 14
    assert compression.ignored == ("lm_head",)
    for layer in compression.layers:
        expected = compression.rounded(merged[f"{layer}.weight"])
        assert torch.equal(loaded.get_submodule(layer).weight, expected)
    assert torch.equal(loaded.model.norm.weight, merged["model.norm.weight"].float())


@pytest.mark.parametrize(
    ("option", "bits", "size"), [("w8a8", 8, None), ("w4a16", 4, 64)], ids=["w8a8", "w4a16"]
)
def test_integers_are_those_of_the_absmax_quantiser(
    exportable: Paths, tmp_path: Path, option: str, bits: int, size: int | None
) -> None:
    weight = load_file(exportable.merged / "model.safetensors")[f"{LAYER}.weight"].float()
    compression = plan_compression(exportable.merged, option)
    assert compression.group_size == size
    expected = AbsmaxFakeQuantizer(bits, size)(weight)
    torch.testing.assert_close(compression.rounded(weight), expected, rtol=1e-6, atol=1e-8)


def test_fp8_keeps_three_bits_of_the_fraction(exportable: Paths, tmp_path: Path) -> None:
    stored = write(exportable.merged, tmp_path / "out", "fp8")
    assert stored[f"{LAYER}.weight"].dtype == torch.float8_e4m3fn
    weight = load_file(exportable.merged / "model.safetensors")[f"{LAYER}.weight"].float()
    restored = stored[f"{LAYER}.weight"].float() * stored[f"{LAYER}.weight_scale"]
    normal = stored[f"{LAYER}.weight"].float().abs() >= 2**-6
    assert ((restored - weight).abs() / weight.abs())[normal].max() <= 2**-4 * (1 + 1e-5)


def test_files_are_small_and_the_same_bytes_each_time(exportable: Paths, tmp_path: Path) -> None:
    first = write(exportable.merged, tmp_path / "first", "w4a16")
    write(exportable.merged, tmp_path / "second", "w4a16")
    for file in sorted((tmp_path / "first").iterdir()):
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
    rows, columns = first[f"{LAYER}.weight_shape"].tolist()
    assert first[f"{LAYER}.weight_packed"].nbytes == rows * columns // 2
    assert first[f"{LAYER}.weight_scale"].shape == (rows, columns // 64)
    assert not any("zero_point" in name for name in first)  # vLLM loads none for symmetric ones


def test_4_bit_weights_of_a_training_lattice_are_kept(exportable: Paths, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(exportable.merged, model)
    weights = {
        name: AbsmaxFakeQuantizer(4, 32)(tensor.float()) if "proj" in name else tensor
        for name, tensor in load_file(model / "model.safetensors").items()
    }
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    (model / NOTE).write_text(
        json.dumps({"scheme": "symmetric", "bits": 4, "group_size": 32, "activation_bits": None})
    )
    compression = plan_compression(model, "w4a16")
    assert compression.group_size == 32
    weight = weights[f"{LAYER}.weight"]
    torch.testing.assert_close(compression.rounded(weight), weight, rtol=1e-6, atol=1e-8)


def test_the_stage_verifies_and_describes_it(exportable: Paths) -> None:
    config = smoke_config(
        "quantize=none", "export=compressed", "export.compressed=w4a16", "export.max_new_tokens=4"
    )
    report = run_stages(exportable, config, "export")["export"]
    found = report["formats"]["compressed_w4a16"]
    assert found["group_size"] == 64
    assert found["token_ids_match"]
    # No activation is rounded, so the runtime computes what is expected; the merged model, not.
    assert found["mean_kl"] <= 1e-6 < found["mean_kl_to_merged"]
    card = (exportable.export / "compressed/README.md").read_text()
    assert "compressed_w4a16" in card
    assert "vllm serve" in card


def refusal(root: Path, family: str, *overrides: str, **changes: Any) -> str:
    save_family(family, root / "model", **changes)
    config = smoke_config(
        "model=local", f"model.path={root}/model", "model.pad_token=null", "export=compressed",
        *overrides,
    )  # fmt: skip
    paths = Paths(root / "project")
    paths.root.mkdir()
    run_stages(paths, config, "fetch")
    with pytest.raises(LoradagError) as refused:
        check_feasible(paths, config)
    return str(refused.value)


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("GPT-2", ["quantize=none"], "GPT2LMHeadModel has none"),
        ("Qwen3-MoE", ["quantize=none", "adapter=none"], "export.formats: Qwen3Moe"),
    ],
)
def test_models_without_such_layers_are_refused_before_training(
    tmp_path: Path, family: str, overrides: list[str], reason: str
) -> None:
    assert reason in refusal(tmp_path, family, *overrides)


def test_rows_that_no_group_divides_are_refused_before_training(tmp_path: Path) -> None:
    message = refusal(
        tmp_path, "Llama 3", "export.compressed=w4a16", hidden_size=80, num_attention_heads=5,
        num_key_value_heads=5,
    )  # fmt: skip
    assert "rows of 80, 128" in message
    assert "export.compressed=w8a8" in message


def test_ternary_weights_are_not_rounded_again() -> None:
    with pytest.raises(ConfigError, match=r"export\.formats.*train\.method = bitnet"):
        smoke_config("adapter=none", "quantize=none", "train=bitnet", "export=compressed")
