"""The merge stage passes a sound merge, and catches each breakage."""

import contextlib
import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from loradag.config.merge import Tolerance
from loradag.config.problems import LoradagError
from loradag.config.sections import Config
from loradag.evaluation.parity import Parity
from loradag.merging import verification
from loradag.merging.low_rank import LowRank
from loradag.merging.verification import _check_use, _checks
from loradag.models.loading import load_base
from loradag.runtime import Paths
from stages.merge import merge
from tests.conftest import run_stages, smoke_config


@pytest.fixture(scope="module")
def config() -> Config:
    return smoke_config("quantize=none", "merge.rows=3")


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, config: Config) -> Paths:
    """A project up to an adapter whose updates are about a hundredth of the weights."""
    from peft import LoraConfig, get_peft_model

    paths = Paths(tmp_path_factory.mktemp("adapted"))
    shutil.copytree(tiny_base, paths.base)
    run_stages(paths, config, "prepare", "quantize")
    torch.manual_seed(0)
    model = get_peft_model(
        load_base(paths, torch.float32),
        LoraConfig(r=64, lora_alpha=128, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data += 1e-3 * torch.randn_like(parameter)
    model.save_pretrained(paths.adapter)
    return paths


def test_a_sound_merge_passes(adapted: Paths, config: Config) -> None:
    report = merge(adapted, config.merge)
    assert report["passed"]
    assert report["mean_kl"] < 1e-6
    assert report["largest_layer_error"] < 1e-5
    assert report["greedy_match"] == 1.0
    assert report["perplexity_after"] == pytest.approx(report["perplexity_before"], rel=1e-5)
    saved = json.loads((adapted.merged / "config.json").read_text())
    assert saved["tie_word_embeddings"]
    assert {"tokenizer.json", "chat_template.jinja", "generation_config.json"} <= {
        file.name for file in adapted.merged.iterdir()
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_passes(adapted: Paths, config: Config, dtype: str) -> None:
    report = merge(adapted, dataclasses.replace(config.merge, dtype=dtype))
    assert report["mean_kl"] < config.merge.tolerance.rounding / 10
    assert json.loads((adapted.merged / "config.json").read_text())["dtype"] == dtype


def wrong_scale(of: LowRank) -> LowRank:
    return LowRank(of.scale / 2, of.parts)


def swapped(of: LowRank) -> LowRank:
    """r = 64 = hidden, so that for the square layers B and A have the same shape."""
    if of.parts["lora_A.weight"].shape != of.parts["lora_B.weight"].shape:
        return of
    a, b = of.parts["lora_B.weight"], of.parts["lora_A.weight"]
    return LowRank(of.scale, {"lora_A.weight": a, "lora_B.weight": b})


@pytest.mark.parametrize("breakage", [wrong_scale, swapped])
@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_a_broken_update_is_caught(
    adapted: Paths, config: Config, monkeypatch: pytest.MonkeyPatch, breakage: Any, dtype: str
) -> None:
    apply = LowRank.apply
    monkeypatch.setattr(LowRank, "apply", lambda self, *given: apply(breakage(self), *given))
    refused(adapted, dataclasses.replace(config.merge, dtype=dtype))


def test_one_layer_left_out_is_caught(
    adapted: Paths, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its effect on the next token is far below any tolerance on KL; on the layer it is not."""
    from loradag.merging import streaming

    read = streaming.read_adapter

    def without_one(folder: Path, parameters: Any) -> Any:
        updates = read(folder, parameters)
        del updates.low_rank["model.layers.1.self_attn.k_proj.weight"]
        return updates

    monkeypatch.setattr(streaming, "read_adapter", without_one)
    message = refused(adapted, config.merge)
    assert "layers.1.self_attn.k_proj" in message


def refused(paths: Paths, options: Any) -> str:
    shutil.rmtree(paths.merged, ignore_errors=True)  # as DVC does before a stage runs
    with pytest.raises(LoradagError, match="is not the trained one") as failure:
        merge(paths, options)
    assert not paths.merged.exists()
    assert not list(paths.merged.parent.glob(".merged*"))
    assert not list(paths.state.iterdir())
    return str(failure.value)


def test_a_full_checkpoint_is_the_merged_model(
    adapted: Paths, config: Config, tmp_path: Path
) -> None:
    """`adapter=none`: what was trained is a complete model already."""
    paths = Paths(tmp_path)
    for folder in ("artifacts", "data"):
        shutil.copytree(adapted.root / folder, tmp_path / folder)
    shutil.rmtree(paths.adapter)
    model = load_base(paths, torch.float32)
    for parameter in model.parameters():
        parameter.data *= 1.01
    model.save_pretrained(paths.adapter)
    report = merge(paths, config.merge)
    assert report["max_abs_logit_diff"] == 0
    weights = "model.safetensors"
    assert (paths.merged / weights).read_bytes() == (paths.adapter / weights).read_bytes()


@pytest.mark.parametrize(("after", "passes"), [(55.0, True), (81.0, True), (120.0, False)])
def test_perplexity_may_fall_as_far_as_it_will(after: float, passes: bool) -> None:
    """Into a better base than training saw it falls; that is no broken merge."""
    parity = Parity(
        max_abs_logit_diff=20.0, mean_abs_logit_diff=1.0, mean_kl=0.2, top_match=0.8,
        perplexity_before=80.0, perplexity_after=after, mean_abs_nll_diff=0.3, greedy_match=0.5,
    )  # fmt: skip
    checks = _checks(parity, Tolerance(kl=0.5, perplexity=0.25, rounding=0.001))
    assert all(check.value <= check.at_most for check in checks) == passes


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_the_report_states_the_dtype_that_computed(
    adapted: Paths, config: Config, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """Of the loaded model, whatever the weights are stored in and `auto` is on this machine."""
    options = dataclasses.replace(config.merge, dtype=stored)
    assert merge(adapted, options)["dtype"] == "float32"
    monkeypatch.setattr(verification, "comparison_dtype", lambda folder: torch.bfloat16)
    assert merge(adapted, options)["dtype"] == "bfloat16"


def test_a_trained_model_that_computes_nan_is_refused_with_the_reason(
    adapted: Paths, config: Config, tmp_path: Path
) -> None:
    paths = Paths(tmp_path)
    for folder in ("artifacts", "data"):
        shutil.copytree(adapted.root / folder, tmp_path / folder)
    weights = load_file(paths.adapter / "adapter_model.safetensors")
    weights = {name: tensor * float("nan") for name, tensor in weights.items()}
    save_file(weights, paths.adapter / "adapter_model.safetensors")
    with pytest.raises(LoradagError, match=r"train\.learning_rate"):
        merge(paths, config.merge)


@pytest.mark.parametrize(
    ("perplexity", "useful"), [(1000.0, True), (2e6, False), (math.inf, False)]
)
def test_a_trained_model_of_no_use_is_refused(perplexity: float, useful: bool) -> None:
    """As after a learning rate of 1e6."""
    parity = Parity(0.0, 0.0, 0.0, 1.0, perplexity, perplexity, 0.0, 1.0)
    context = contextlib.nullcontext() if useful else pytest.raises(LoradagError, match="of no use")
    with context:
        _check_use(parity, vocabulary=1024)
