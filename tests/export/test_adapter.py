"""The adapter format: peft's adapter on the base that it was trained on."""

from pathlib import Path

import pytest

from loradag.config.problems import ConfigError, LoradagError
from loradag.config.sections import Config
from loradag.export import export_verification
from loradag.runtime import Paths
from tests.conftest import run_stages, smoke_config


def trained_project(root: Path, *overrides: str) -> tuple[Paths, Config]:
    root.mkdir()
    config = smoke_config(
        "export.formats=[adapter]", "train.max_steps=2", "train.warmup_steps=0",
        "train.checkpoint_steps=2", "prepare.max_rows=100", "export.rows=2", "merge.rows=2",
        *overrides,
    )  # fmt: skip
    run_stages(Paths(root), config, "fetch", "prepare", "quantize", "train", "merge")
    return Paths(root), config


@pytest.mark.parametrize(
    ("quantize", "adapter", "described"),
    [
        ("nf4", "loftq", "bnb_4bit_quant_type='nf4'"),
        ("int8", "lora", "load_in_8bit=True"),
        ("none", "dora", 'PeftModel.from_pretrained(model, ".")'),
    ],
)
def test_it_computes_what_was_trained(
    tmp_path: Path, quantize: str, adapter: str, described: str
) -> None:
    merge = "merge.base=dequantized" if adapter == "loftq" else "merge.base=original"
    paths, config = trained_project(
        tmp_path / "project", f"quantize={quantize}", f"adapter={adapter}", merge
    )
    (found,) = run_stages(paths, config, "export")["export"]["formats"].values()
    assert found["mean_kl"] < found["mean_kl_limit"]
    assert found["base"] == ("full precision" if quantize == "none" else quantize)
    assert described in (paths.export / "adapter/README.md").read_text()


def test_loftq_on_the_full_precision_base_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has learned the quantisation's error, which that base does not have."""
    paths, config = trained_project(
        tmp_path / "project", "quantize=nf4", "adapter=loftq", "merge.base=dequantized"
    )
    monkeypatch.setattr(export_verification, "base_quantization", lambda paths: None)
    with pytest.raises(LoradagError, match="adapter: mean KL"):
        run_stages(paths, config, "export")


@pytest.mark.parametrize(
    "overrides", [["quantize=symmetric"], ["quantize.block_size=128"]], ids=str
)
def test_a_base_that_peft_users_cannot_quantise_is_refused(overrides: list[str]) -> None:
    with pytest.raises((ConfigError, LoradagError), match=r"export\.formats.*quantize"):
        smoke_config("export.formats=[adapter]", *overrides)
