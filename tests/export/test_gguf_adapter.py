"""llama.cpp's LoRA file on the base's GGUF, against peft on the same base."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from loradag.compat.llamacpp import Decoder
from loradag.config.problems import LoradagError
from loradag.export import formats
from loradag.export.feasibility import check_feasible
from loradag.export.gguf_adapter import write_gguf_adapter, write_gguf_base
from loradag.models.loading import load_base, load_tuned
from loradag.runtime import Paths
from tests.architectures import FAMILIES, save_family
from tests.conftest import run_stages, smoke_config

ROW = list(range(20, 60))
# Rows that the converter reorders, weights stored (in, out), fused matrices, a norm's offset.
FAST = ("Llama 2", "GPT-2", "GPT-NeoX", "Phi 3", "Gemma 3")
WITHOUT_EXPERTS = [family for family in FAMILIES if family not in ("Mixtral", "Qwen3-MoE")]


def project(root: Path, family: str, **options: Any) -> Paths:
    """A fetched base of `family` with a random adapter that changes what it computes."""
    save_family(family, root / "model")
    pad = "'<unk>'" if (root / "model/tokenizer.model").exists() else "null"
    config = smoke_config("model=local", f"model.path={root}/model", f"model.pad_token={pad}")
    paths = Paths(root / "project")
    paths.root.mkdir()
    run_stages(paths, config, "fetch")
    torch.manual_seed(0)
    tuned = get_peft_model(
        load_base(paths, torch.float32),
        LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **options),
    )
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.05 * torch.randn_like(parameter)
    tuned.save_pretrained(paths.adapter)
    return paths


@pytest.mark.parametrize(
    ("family", "options"),
    [
        *((family, {}) for family in FAST),
        ("Llama 3", {"use_rslora": True}),
        ("Qwen 2", {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 2}}),
        *(
            pytest.param(family, {}, marks=pytest.mark.slow)
            for family in WITHOUT_EXPERTS
            if family not in FAST
        ),
    ],
)
def test_it_computes_what_peft_computes(
    tmp_path: Path, family: str, options: dict[str, Any]
) -> None:
    paths = project(tmp_path, family, **options)
    write_gguf_adapter(paths, tmp_path / "adapter.gguf", "tiny")
    write_gguf_base(paths.base, tmp_path / "base.gguf")
    base = load_base(paths, torch.float32)
    with torch.inference_mode():
        unchanged = base(torch.tensor([ROW])).logits[0].numpy()
        expected = load_tuned(paths, base)(torch.tensor([ROW])).logits[0].numpy()
    with Decoder(tmp_path / "base.gguf", 64, 1, tmp_path / "adapter.gguf") as decoder:
        found = decoder.logits(ROW)[:, : expected.shape[1]]
    changed = np.abs(expected - unchanged).max()
    assert np.abs(found - expected).max() < 2e-3 * changed


def test_the_stage_verifies_and_describes_it(exportable: Paths) -> None:
    config = smoke_config("quantize=none", "export.formats=[gguf_adapter,adapter]",
                          "export.max_new_tokens=2")  # fmt: skip
    report = run_stages(exportable, config, "export")["export"]
    found = report["formats"]["gguf_adapter"]
    assert found["mean_kl"] < found["mean_kl_limit"]
    assert found["base"] == "f32"
    assert found["token_ids_match"]
    file = exportable.export / "gguf_adapter/random-lora-adapter.gguf"
    assert {tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors} == {"F32"}
    card = (exportable.export / "gguf_adapter/README.md").read_text()
    assert "--lora random-lora-adapter.gguf" in card


def test_another_scale_is_caught(exportable: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    from loradag.merging import low_rank

    sound = low_rank._scale
    monkeypatch.setattr(low_rank, "_scale", lambda *given: 1.1 * sound(*given))
    with pytest.raises(LoradagError, match="gguf_adapter: mean KL"):
        run_stages(
            exportable, smoke_config("quantize=none", "export.formats=gguf_adapter"), "export"
        )


def test_a_file_that_is_no_adapter_is_refused_with_llama_cpps_reason(
    exportable: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_base(paths: Paths, path: Path, name: str) -> None:
        write_gguf_base(paths.base, path)

    monkeypatch.setattr(formats, "write_gguf_adapter", write_base)
    with pytest.raises(LoradagError, match=r"refuses random-lora-adapter.*general\.type"):
        run_stages(
            exportable, smoke_config("quantize=none", "export.formats=gguf_adapter"), "export"
        )


def test_an_adapted_embedding_is_refused_before_training(exportable: Paths) -> None:
    config = smoke_config(
        "quantize=none", "export.formats=gguf_adapter", "adapter.target_modules=[embed_tokens]"
    )
    with pytest.raises(LoradagError, match=r"adapter\.target_modules: names model\.embed_tokens"):
        check_feasible(exportable, config)


def test_what_is_no_low_rank_update_is_never_left_out(tmp_path: Path, exportable: Paths) -> None:
    paths = Paths(tmp_path)
    tuned = get_peft_model(
        load_base(exportable, torch.float32), LoraConfig(r=2, target_modules=["q_proj"],
        use_dora=True),
    )  # fmt: skip
    tuned.save_pretrained(paths.adapter)
    paths.base.symlink_to(exportable.base)
    with pytest.raises(LoradagError, match="no low-rank update of a linear layer"):
        write_gguf_adapter(paths, tmp_path / "adapter.gguf", "tiny")
