"""Models of other makers through the DAG: each is verified in its runtimes, or refused in time.

The slow test runs every architecture with every quantisation, and writes `docs/architectures.md`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loradag.config.problems import LoradagError
from loradag.config.sections import Config
from loradag.export.feasibility import check_before_training, check_feasible
from loradag.runtime import Paths, run_stage
from stages.prepare import prepare
from tests.architectures import FAMILIES, save_family
from tests.conftest import ROOT, run_stages, smoke_config

QUANTIZATIONS = ("none", "nf4", "int8", "symmetric")
FORMATS = ("safetensors", "gguf_f16")
WITH_EXPERTS = ("Mixtral", "Qwen3-MoE")
# llama.cpp puts a space before a text of these also where it begins with one, as a golden one does.
SPACE_ADDED = ("Llama 2", "Mistral", "Phi 3", "Mixtral")
FAST = [
    ("Llama 2", "nf4"), ("Qwen 2", "int8"), ("Gemma 3", "symmetric"), ("GPT-NeoX", "none"),
    ("SmolLM3", "none"), ("Mixtral", "none"), ("Qwen3-MoE", "nf4"),
]  # fmt: skip
TITLE = """# Architectures

What `tests/test_architectures.py` found: a tiny random model of each architecture, with the kind of
tokenizer that the real ones have, through fetch, prepare, quantize, train (LoRA on every matrix of
the blocks, experts included), merge and export. A format in the table passed its verification:
token ids, chat template and next-token distributions in its own runtime equal the merged model's.
All others are refused before training, with the reason below.

"""


def run(root: Path, family: str, *overrides: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """What the export found, by format; `changes` are of the model's config.

    Raises:
        LoradagError: the run is refused. After its training it may not be: that is an error of
            another class.
    """
    save_family(family, root / "model", **changes)
    pad = "'<unk>'" if family in SPACE_ADDED else "null"
    config: Config = smoke_config(
        "model=local", f"model.path={root}/model", f"model.pad_token={pad}",
        "train.max_steps=2", "train.warmup_steps=0", "train.checkpoint_steps=2",
        "export.formats=[safetensors,gguf]", "export.type=f16", "export.rows=2",
        "export.max_new_tokens=2", "merge.rows=2", "prepare.max_rows=100", *overrides,
    )  # fmt: skip
    paths = Paths(root / "project")
    paths.root.mkdir()
    run_stages(paths, config, "fetch")
    check_feasible(paths, config)
    run_stages(paths, config, "prepare", "quantize")
    try:
        reports = run_stages(paths, config, "train", "merge", "export")
    except LoradagError as error:
        raise AssertionError(f"refused after its training: {error}") from error
    assert reports["merge"].get("largest_layer_error", 0) < 1e-4
    found: dict[str, dict[str, Any]] = reports["export"]["formats"]
    return found


def overrides_of(family: str, scheme: str) -> list[str]:
    without_dropout = ["adapter.dropout=0"] if family in WITH_EXPERTS else []
    return [f"quantize={scheme}", *without_dropout]


def cell(root: Path, family: str, scheme: str) -> str:
    """`safetensors, gguf_f16` where both passed, or why the run is refused."""
    try:
        found = run(root, family, *overrides_of(family, scheme))
    except LoradagError as error:
        return f"refused: {error}"
    check_formats(found, family)
    return ", ".join(found)


def check_formats(found: dict[str, dict[str, Any]], family: str) -> None:
    assert set(found) == set(FORMATS)
    for name, numbers in found.items():
        adds_space = name.startswith("gguf") and family in SPACE_ADDED
        assert numbers["token_ids_match"] != adds_space
        assert numbers["perplexity"] == pytest.approx(numbers["expected_perplexity"], rel=1e-3)


@pytest.mark.parametrize(("family", "scheme"), FAST)
def test_passes_or_is_refused_before_training(tmp_path: Path, family: str, scheme: str) -> None:
    result = cell(tmp_path, family, scheme)
    is_refused = family in WITH_EXPERTS and scheme != "none"
    assert result.startswith("refused: quantize.scheme") == is_refused


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_EXPERTS)
@pytest.mark.parametrize(
    "overrides",
    [
        ["adapter=none"],
        ["adapter=rslora", "adapter.dropout=0"],
        ["adapter.dropout=0", "launch=fsdp", "launch.processes=2", "train.batch_size=2"],
        ["adapter.target_modules=[q_proj,v_proj]"],
        ["adapter=dora", "adapter.target_modules=[q_proj,v_proj]"],
        ["adapter=pissa", "adapter.target_modules=[q_proj,v_proj]"],
        ["adapter=quantized_lora", "adapter.target_modules=[q_proj,v_proj]"],
    ],
    ids=str,
)
def test_experts_are_adapted_or_left_as_the_config_says(
    tmp_path: Path, family: str, overrides: list[str]
) -> None:
    check_formats(run(tmp_path, family, "quantize=none", *overrides), family)


@pytest.mark.slow
@pytest.mark.parametrize("family", WITH_EXPERTS)
def test_an_adapter_of_experts_is_exported_for_peft(tmp_path: Path, family: str) -> None:
    overrides = ["quantize=none", "adapter.dropout=0", "export.formats=[adapter]"]
    numbers = run(tmp_path, family, *overrides)["adapter"]
    assert numbers["perplexity"] == pytest.approx(numbers["expected_perplexity"], rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ([], r"adapter\.dropout = 0\.05"),
        (["adapter=pissa"], r"adapter\.variant = pissa"),
        (["adapter.dropout=0", "train=qat"], r"train\.method = qat"),
        (["adapter=none", "train=qat"], r"train\.method = qat"),
        (["adapter=none", "train=bitnet"], r"train\.method = bitnet"),
        (["adapter.dropout=0", "export.formats=gguf_adapter"], r"adapter\.target_modules"),
        (["adapter.dropout=0", "export.formats=compressed"], r"export\.formats"),
        (["adapter.dropout=0", "launch=deepspeed"], r"launch\.strategy = deepspeed"),
    ],
    ids=str,
)
def test_what_would_leave_out_experts_is_refused_before_training(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    with pytest.raises(LoradagError, match=f"{reason}.*expert"):
        run(tmp_path, "Mixtral", "quantize=none", *overrides)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[tuple[str, str], str]]:
    """Cells as they come; written to the docs once all are there."""
    cells: dict[tuple[str, str], str] = {}
    yield cells
    if len(cells) == len(FAMILIES) * len(QUANTIZATIONS):
        (ROOT / "docs/architectures.md").write_text(render(cells), encoding="utf-8")


def render(cells: dict[tuple[str, str], str]) -> str:
    reasons = list(dict.fromkeys(text for text in cells.values() if text.startswith("refused")))
    lines = [f"| architecture | {' | '.join(QUANTIZATIONS)} |", "|---|" + "---|" * 4]
    for family in FAMILIES:
        texts = [cells[family, scheme] for scheme in QUANTIZATIONS]
        short = [
            f"refused [{reasons.index(text) + 1}]" if text in reasons else text for text in texts
        ]
        lines.append(f"| {family} | {' | '.join(short)} |")
    notes = [f"{at}. {text.removeprefix('refused: ')}" for at, text in enumerate(reasons, 1)]
    return TITLE + "\n".join([*lines, "", *notes]) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", QUANTIZATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_with_every_quantisation(
    table: dict[tuple[str, str], str], tmp_path: Path, family: str, scheme: str
) -> None:
    table[family, scheme] = cell(tmp_path, family, scheme)


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("Gemma 3", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32"),
        ("Gemma 2", {"query_pre_attn_scalar": 32}, "query_pre_attn_scalar is 32"),
        ("Qwen 2", {"vocab_size": 900}, "vocab_size"),
    ],
)
def test_what_llama_cpp_cannot_run_is_refused_before_training(
    tmp_path: Path, family: str, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(LoradagError, match=rf"export\.formats.*{reason}"):
        run(tmp_path, family, **changes)


@pytest.mark.parametrize(("type", "reason"), [("q4_k_m", "importance"), ("[f16,q8_0]", "q8_0")])
def test_experts_are_refused_with_types_that_round_them(
    tmp_path: Path, type: str, reason: str
) -> None:
    overrides = ["adapter=none", "quantize=none", f"export.type={type}"]
    with pytest.raises(LoradagError, match=rf"export\.type: Mixtral.*{reason}"):
        run(tmp_path, "Mixtral", *overrides)


def test_rows_that_left_none_for_calibration_are_refused_before_training(tmp_path: Path) -> None:
    config = smoke_config("export.type=q4_k_m", "prepare.calibration_fraction=1e-9")
    paths = Paths(tmp_path)
    run_stages(paths, config, "fetch", "prepare")
    with pytest.raises(LoradagError, match=r"export\.type: there are no calibration rows"):
        check_before_training(paths, config)


def test_llama_cpps_other_attention_scale_is_caught_in_the_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes Gemma 3's from the head size; without the rule above the distributions differ."""
    monkeypatch.setattr(sys.modules[__name__], "check_feasible", lambda paths, config: None)
    with pytest.raises(AssertionError, match="gguf_f16: mean KL"):
        run(tmp_path, "Gemma 3", query_pre_attn_scalar=8)


def test_the_stage_refuses_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loradag.config.composition import compose, write_params

    save_family("Gemma 3", tmp_path / "model", query_pre_attn_scalar=32)
    monkeypatch.chdir(tmp_path)
    overrides = ["experiment=smoke", "model=local", f"model.path={tmp_path}/model",
                 "model.pad_token=null", "export=gguf"]  # fmt: skip
    write_params(compose(overrides), tmp_path)
    run_stages(Paths(tmp_path), smoke_config(*overrides[1:]), "fetch")
    with pytest.raises(SystemExit, match=r"prepare: .*query_pre_attn_scalar"):
        run_stage(prepare, check=check_feasible)
    assert not Paths(tmp_path).prepared.exists()
