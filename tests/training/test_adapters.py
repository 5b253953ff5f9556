"""Adapters of every kind: continued from one that exists, and with gradient checkpointing."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from loradag.config.problems import ConfigError, LoradagError
from loradag.models.loading import load_quantized, load_tuned
from tests.conftest import run_stages, smoke_config
from tests.training.conftest import copied, hashes

KINDS = {
    "lora": [],
    "rslora": ["adapter=rslora"],
    "dora": ["adapter=dora"],
    "pissa": ["adapter=pissa", "quantize=none"],
    "loftq": ["adapter=loftq", "merge.base=dequantized"],
    "quantized_lora": ["adapter=quantized_lora"],
    "modules_to_save": ["adapter.modules_to_save=[lm_head]", "quantize=none"],
    "none": ["adapter=none", "quantize=none"],
    "qat": ["adapter=none", "quantize=none", "train=qat"],
    "qat_lora": ["adapter=lora", "quantize=none", "train=qat"],
    "bitnet": ["adapter=none", "quantize=none", "train=bitnet"],
}
SHORT = (
    "train.max_steps=2", "train.warmup_steps=0", "train.eval_steps=null", "train.dtype=float32",
    "adapter.dropout=0.0",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_no_result(trained, tmp_path, kind) -> None:
    paths, _ = copied(trained, tmp_path)
    dropout = [] if "adapter=none" in KINDS[kind] else [SHORT[-1]]
    config = smoke_config(*KINDS[kind], *SHORT[:-1], *dropout)
    if config.quantize.scheme == "none":
        shutil.rmtree(paths.quantized)
        paths.quantized.mkdir()
        (paths.quantized / "scheme.json").write_text('{"scheme": "none"}')
    results = []
    for checkpointing in (False, True):
        train = replace(config.train, gradient_checkpointing=checkpointing)
        report = run_stages(paths, replace(config, train=train), "train")["train"]
        (file,) = paths.adapter.glob("*.safetensors")
        results.append((report["final_loss"], load_file(file)))
    (plain, weights), (checkpointed, same) = results
    assert checkpointed == pytest.approx(plain, rel=1e-5)
    assert weights.keys() == same.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(same[name], weight, rtol=1e-3, atol=1e-5)


def continued(config, folder, **adapter):
    return replace(config, adapter=replace(config.adapter, start=str(folder), **adapter))


def test_a_continued_adapter_starts_where_it_ended(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    start = tmp_path / "start"
    shutil.copytree(trained[0].adapter, start)
    before = hashes(start)
    still = replace(config.train, learning_rate=1e-9, max_steps=1, warmup_steps=0)
    report = run_stages(paths, replace(continued(config, start), train=still), "train")["train"]
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        earlier = load_tuned(trained[0], load_quantized(paths, torch.float32))(ids).logits
        later = load_tuned(paths, load_quantized(paths, torch.float32))(ids).logits
    torch.testing.assert_close(later, earlier, rtol=0, atol=1e-5)
    assert hashes(start) == before
    fresh = run_stages(paths, replace(config, train=still), "train")["train"]
    assert report["eval_loss"] < fresh["eval_loss"]
    assert report["checkpoint_key"] != fresh["checkpoint_key"]


def test_an_adapter_of_another_form_is_refused_with_what_differs(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    start = trained[0].adapter
    for options, message in (
        ({"r": 4}, r"r = 8, and adapter\.r = 4"),
        ({"alpha": 4.0}, r"alpha = 16.*, and adapter\.alpha = 4"),
        ({"variant": "dora"}, "use_dora = False, and adapter.variant makes it True"),
        ({"target_modules": ["q_proj"]}, "other layers: only one of the two has"),
    ):
        with pytest.raises(LoradagError, match=message):
            run_stages(paths, continued(config, start, **options), "train")
    with pytest.raises(LoradagError, match=r"no adapter_model\.safetensors there"):
        run_stages(paths, continued(config, tmp_path), "train")


def test_what_has_a_start_of_its_own_is_not_continued() -> None:
    for overrides in KINDS["pissa"], KINDS["loftq"], KINDS["none"]:
        with pytest.raises(ConfigError, match=r"adapter\.start = 'adapters/old'"):
            smoke_config(*overrides, "adapter.start=adapters/old")


def test_the_adapter_that_is_continued_is_a_dep() -> None:
    assert smoke_config("adapter.start=adapters/old").inputs.adapter == "adapters/old"
    assert smoke_config().inputs.adapter == "stages/train.py"
