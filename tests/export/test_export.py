"""The export stage: what it writes loads where users run it, and what is broken is caught."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import pipeline

from loradag.config.problems import LoradagError
from loradag.config.sections import Config
from loradag.export import formats as write
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from tests.conftest import run_stages, smoke_config


def test_every_format_is_verified_and_described(exportable: Paths) -> None:
    config = smoke_config(
        "quantize=none", "export.formats=[gguf,safetensors,adapter]", "export.type=[q8_0,q4_0]",
        "export.max_shard_size=200KB", "export.max_new_tokens=4",
    )  # fmt: skip
    report = run_stages(exportable, config, "export")["export"]

    assert set(report["formats"]) == {"gguf_q8_0", "gguf_q4_0", "safetensors", "adapter"}
    for found in report["formats"].values():
        assert found["token_ids_match"]
        assert found["tokens_per_second"] > 0
        assert found["perplexity"] == pytest.approx(found["expected_perplexity"], rel=0.01)
    assert report["formats"]["safetensors"]["greedy_match"] == 1.0
    # q4_0 loses more than q8_0, and the expectation shows it.
    loss = {
        name: abs(found["expected_perplexity"] / found["merged_perplexity"] - 1)
        for name, found in report["formats"].items()
    }
    assert loss["gguf_q4_0"] > loss["gguf_q8_0"] > loss["safetensors"] == 0

    on_disk = {
        file.relative_to(exportable.export).as_posix(): file
        for file in exportable.export.rglob("*")
        if file.is_file()
    }
    assert {file["path"] for file in report["files"]} == set(on_disk)
    for file in report["files"]:
        content = on_disk[file["path"]].read_bytes()
        assert file["bytes"] == len(content)
        assert file["sha256"] == hashlib.sha256(content).hexdigest()
        assert file["path"].startswith(file["format"])

    modelfile = on_disk["gguf/Modelfile"].read_text()
    assert modelfile.startswith("FROM ./random-lora-q8_0.gguf\n# FROM ./random-lora-q4_0.gguf\n")
    assert 'TEMPLATE """Quote: {{ .Prompt }}"""' in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile

    assert len(list((exportable.export / "safetensors").glob("*.safetensors"))) > 1
    generate = pipeline("text-generation", model=str(exportable.export / "safetensors"))
    assert generate("Quote: ", max_new_tokens=2, do_sample=False)[0]["generated_text"]
    for kind in ("gguf", "safetensors", "adapter"):
        card = on_disk[f"{kind}/README.md"].read_text()
        for wanted in ("quotes", "BSD-4-Clause", "r = 8", "## How to run", "perplexity"):
            assert wanted in card
        assert str(exportable.root) not in card
        assert (
            on_disk[f"{kind}/LICENSE.txt"].read_bytes()
            == (exportable.base / "LICENSE.txt").read_bytes()
        )


def test_safetensors_are_the_merged_weights_bit_for_bit(exportable: Paths, tmp_path: Path) -> None:
    from loradag.export.folders import write_safetensors

    write_safetensors(exportable.merged, tmp_path / "out", "200KB")
    merged = load_model(exportable.merged, torch.float32).state_dict()
    exported = load_model(tmp_path / "out", torch.float32).state_dict()
    assert all(torch.equal(exported[name], merged[name]) for name in merged)


def wrong_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][100:]
    path.write_text(json.dumps(content))


def wrong_splitter(model: Path) -> None:
    """SmolLM2's trap: the rule that splits digits one by one is lost."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = load_tokenizer(model)
    tokenizer.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.save_pretrained(model)


def wrong_template(model: Path) -> None:
    path = model / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "user"))


def wrong_norm(model: Path) -> None:
    path = model / "model.safetensors"
    weights = load_file(path)
    weights["model.norm.weight"] += 1  # Gemma's convention on a Llama
    save_file(weights, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "breakages", "caught"),
    [
        (
            "safetensors",
            [wrong_tokenizer, wrong_template, wrong_norm],
            ["has the ids", "chat template", "perplexity"],
        ),
        (
            "gguf",
            [wrong_tokenizer, wrong_template, wrong_norm],
            ["has the ids", "chat template", "perplexity"],
        ),
        ("gguf", [wrong_splitter], ["2024' has the ids"]),
    ],
    ids=["safetensors", "gguf", "gguf-splitter"],
)
def test_what_is_broken_is_caught(
    exportable: Paths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    breakages: list[Callable[[Path], None]],
    caught: list[str],
) -> None:
    """The files are written from a model other than the merged one."""
    name = f"write_{kind}"
    sound: Any = getattr(write, name)

    def from_broken(merged: Path, *given: Any) -> Any:
        model = tmp_path / "broken"
        shutil.copytree(merged, model)
        for breakage in breakages:
            breakage(model)
        return sound(model, *given)

    monkeypatch.setattr(write, name, from_broken)
    config = smoke_config("quantize=none", f"export.formats={kind}", "export.type=f16")
    shutil.rmtree(exportable.export, ignore_errors=True)  # as DVC does before a stage runs
    with pytest.raises(LoradagError, match="is not the merged model") as failure:
        run_stages(exportable, config, "export")
    assert [part for part in caught if part not in str(failure.value)] == []
    assert len(str(failure.value).splitlines()) >= 1 + len(caught)
    assert not exportable.export.exists()
    assert not list(exportable.export.parent.glob(".export*"))


def test_an_adapter_with_another_scale_is_caught(
    exportable: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = write.write_adapter

    def write_scaled(adapter: Path, merged: Path, folder: Path, pin: dict[str, Any]) -> None:
        sound(adapter, merged, folder, pin)
        config = json.loads((folder / "adapter_config.json").read_text())
        config["lora_alpha"] *= 100
        (folder / "adapter_config.json").write_text(json.dumps(config))

    monkeypatch.setattr(write, "write_adapter", write_scaled)
    with pytest.raises(LoradagError, match="adapter: perplexity is"):
        run_stages(exportable, smoke_config("quantize=none", "export.formats=adapter"), "export")


def test_a_file_that_no_runtime_loads_is_one_message(
    exportable: Paths, export_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(model: Path, path: Path, *given: Any) -> dict[str, str]:
        path.write_bytes(b"GGUF" + bytes(100))
        return {}

    monkeypatch.setattr(write, "write_gguf", nonsense)
    with pytest.raises(LoradagError, match=r"llama\.cpp refuses .*bad GGUF version"):
        run_stages(exportable, export_config, "export")


def test_an_adapter_is_refused_where_none_is_trained() -> None:
    from loradag.config.problems import ConfigError

    with pytest.raises((ConfigError, LoradagError), match=r"export\.formats.*adapter\.variant"):
        smoke_config("quantize=none", "adapter=none", "export.formats=[adapter]")


def test_a_model_that_memory_has_no_room_for_is_verified_layer_by_layer(
    exportable: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loradag.models import placement

    half = placement.SPARE * placement.weight_bytes(exportable.merged, torch.float32) / 2
    monkeypatch.setattr(placement, "available_bytes", lambda: int(half))
    config = smoke_config(
        "quantize=none", "export.formats=[gguf,safetensors,compressed]",
        "export.type=[f16,q8_0]", "export.max_new_tokens=2",
    )  # fmt: skip
    formats = run_stages(exportable, config, "export")["export"]["formats"]
    assert set(formats) == {"gguf_f16", "gguf_q8_0", "safetensors", "compressed_w8a8"}
    assert placement.is_offloaded(load_model(exportable.merged, torch.float32))


def test_the_same_inputs_elsewhere_make_the_same_files(exportable: Paths, tmp_path: Path) -> None:
    config = smoke_config(
        "quantize=none", "export.type=[f16,q4_0,q4_k_m]", "export.max_new_tokens=2",
        "export.formats=[gguf,safetensors,compressed,adapter,gguf_adapter]",
    )  # fmt: skip
    elsewhere = Paths(tmp_path / "another-7B-v2")
    shutil.copytree(exportable.root, elsewhere.root)
    reports = [run_stages(paths, config, "export")["export"] for paths in (exportable, elsewhere)]
    assert reports[0]["files"] == reports[1]["files"]
    for file in elsewhere.export.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert str(elsewhere.root).encode() not in content, file
            assert time.strftime("%Y-%m-%d").encode() not in content, file
