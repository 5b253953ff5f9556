"""Exports of another model than the merged one: the verification names each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from safetensors.torch import load_file, save_file

from loradag.export.compressed import write_compressed
from loradag.export.export_verification import Verification
from loradag.export.folders import write_safetensors
from loradag.export.gguf_format import write_gguf
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from tests.conftest import smoke_config

Breakage = Callable[[Path], None]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(model: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(model / "model.safetensors")
    change(weights)
    weights = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def wrong_rope_base(model: Path) -> None:
    edit(model / "config.json", lambda config: config["rope_parameters"].update(rope_theta=20000.0))


def wrong_attention_scale(model: Path) -> None:
    """Queries of one layer multiplied, which is what another scale does."""
    edit_weights(model, lambda w: w["model.layers.0.self_attn.q_proj.weight"].mul_(1.1))


def swapped_tensors(model: Path) -> None:
    def swap(weights: dict[str, Any]) -> None:
        gate, up = (f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up"))
        weights[gate], weights[up] = weights[up].clone(), weights[gate].clone()

    edit_weights(model, swap)


def one_layer_left_out(model: Path) -> None:
    edit(model / "config.json", lambda config: config.update(num_hidden_layers=1))

    def drop(weights: dict[str, Any]) -> None:
        for name in [name for name in weights if ".layers.1." in name]:
            del weights[name]

    edit_weights(model, drop)


def wrong_norm_offset(model: Path) -> None:
    """Gemma's convention, 1 + w, on a Llama."""
    edit_weights(model, lambda weights: weights["model.layers.1.input_layernorm.weight"].add_(1))


def another_tokenizers_merges(model: Path) -> None:
    edit(
        model / "tokenizer.json",
        lambda content: content["model"].update(merges=content["model"]["merges"][100:]),
    )


def dropped_added_token(model: Path) -> None:
    """`<|im_start|>` is an ordinary piece: a dialogue's markers are split into letters."""

    def drop(content: dict[str, Any]) -> None:
        content["added_tokens"] = [
            token for token in content["added_tokens"] if token["content"] != "<|im_start|>"
        ]

    edit(model / "tokenizer.json", drop)
    edit(model / "tokenizer_config.json", lambda config: config.pop("bos_token"))


def doubled_bos(model: Path) -> None:
    """The tokenizer adds the BOS that the chat template writes, too."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = load_tokenizer(model)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(model)
    edit(model / "tokenizer_config.json", lambda config: config.update(add_bos_token=True))


def another_eos(model: Path) -> None:
    edit(
        model / "tokenizer_config.json",
        lambda config: config.update(eos_token=config["bos_token"]),
    )


def swapped_query_rows(model: Path) -> None:
    """The order of rotary halves that llama.cpp has, which its converter makes once more."""

    def permute(weights: dict[str, Any]) -> None:
        name = "model.layers.0.self_attn.q_proj.weight"
        heads = weights[name].unflatten(0, (4, 2, -1))
        weights[name] = heads.transpose(1, 2).flatten(0, 2)

    edit_weights(model, permute)


def answers_that_do_not_end(model: Path) -> None:
    """Only a second question shows it."""
    path = model / "chat_template.jinja"
    ends = "{% if message['role'] != 'assistant' %}<|im_end|>{% endif %}"
    path.write_text(path.read_text().replace("<|im_end|>", ends))


BREAKAGES: dict[Breakage, str] = {
    wrong_rope_base: "mean KL",
    wrong_attention_scale: "mean KL",
    swapped_tensors: "mean KL",
    one_layer_left_out: "perplexity",
    wrong_norm_offset: "mean KL",
    another_tokenizers_merges: "has the ids",
    dropped_added_token: "has the ids",
    doubled_bos: "has the ids",
    another_eos: "its EOS is",
    swapped_query_rows: "mean KL",
    answers_that_do_not_end: "chat template renders",
}
FORMATS = ["gguf_f16", "gguf_q8_0", "safetensors", "compressed_w8a8", "compressed_w4a16",
           "compressed_fp8"]  # fmt: skip


@pytest.fixture(scope="module")
def verification(exportable: Paths, tmp_path_factory: pytest.TempPathFactory) -> Verification:
    options = smoke_config("quantize=none", "export.rows=3", "export.max_new_tokens=2").export
    return Verification(exportable, options, FORMATS, tmp_path_factory.mktemp("verification"))


def write(model: Path, name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if name == "safetensors":
        write_safetensors(model, folder / name, "5GB")
        return folder / name
    if name.startswith("compressed"):
        write_compressed(model, folder / name, name.removeprefix("compressed_"), "5GB")
        return folder / name
    write_gguf(model, folder / f"{name}.gguf", name.removeprefix("gguf_"), "tiny")
    return folder / f"{name}.gguf"


@pytest.mark.parametrize("name", FORMATS)
def test_the_merged_model_passes(
    verification: Verification, exportable: Paths, tmp_path: Path, name: str
) -> None:
    numbers, problems = verification.verify(name, write(exportable.merged, name, tmp_path))
    assert problems == []
    assert numbers["token_ids_match"]
    assert numbers["mean_kl"] < numbers["mean_kl_limit"] / 3


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
@pytest.mark.parametrize(
    "name",
    ["gguf_f16", *(pytest.param(name, marks=pytest.mark.slow) for name in FORMATS[1:])],
)
def test_each_breakage_is_caught(
    verification: Verification, exportable: Paths, tmp_path: Path, name: str, breakage: Breakage
) -> None:
    model = tmp_path / "broken"
    shutil.copytree(exportable.merged, model)
    breakage(model)
    _, problems = verification.verify(name, write(model, name, tmp_path))
    assert any(BREAKAGES[breakage] in problem for problem in problems), problems


@pytest.mark.parametrize("name", ["safetensors", "compressed_w8a8"])
def test_generation_that_does_not_end_is_caught(
    verification: Verification, exportable: Paths, tmp_path: Path, name: str
) -> None:
    """These formats bring settings of generation, which name the EOS once more."""
    model = tmp_path / "broken"
    shutil.copytree(exportable.merged, model)
    edit(model / "generation_config.json", lambda config: config.update(eos_token_id=7))
    _, problems = verification.verify(name, write(model, name, tmp_path))
    assert problems == [
        "a generated text ends at [7], not at [2]. Fix eos_token_id in generation_config.json."
    ]


@pytest.mark.parametrize(
    ("method", "change", "caught"),
    [
        ("add_add_bos_token", lambda adds: not adds, "has the ids"),
        ("add_eos_token_id", lambda id: id + 1, "its EOS is"),
        ("add_rope_freq_base", lambda base: 1.1 * base, "mean KL"),
    ],
    ids=["BOS flag", "EOS", "rope base"],
)
def test_wrong_metadata_of_a_gguf_is_caught(
    verification: Verification,
    exportable: Paths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    change: Callable[[Any], Any],
    caught: str,
) -> None:
    """The model folder is sound; the converter writes another value."""
    sound = getattr(gguf.GGUFWriter, method)
    monkeypatch.setattr(gguf.GGUFWriter, method, lambda self, value: sound(self, change(value)))
    _, problems = verification.verify("gguf_f16", write(exportable.merged, "gguf_f16", tmp_path))
    assert any(caught in problem for problem in problems), problems


def test_rows_that_the_converter_does_not_reorder_are_caught(
    verification: Verification,
    exportable: Paths,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from conversion.llama import LlamaModel

    monkeypatch.setattr(LlamaModel, "permute", staticmethod(lambda rows, *heads: rows))
    _, problems = verification.verify("gguf_f16", write(exportable.merged, "gguf_f16", tmp_path))
    assert any("mean KL" in problem for problem in problems), problems
