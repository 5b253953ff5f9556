"""The guide's recipes on tiny models of the same architecture, with rows of the same form."""

import json
from pathlib import Path
from typing import Any

import pytest

from loradag.config.composition import compose, plain
from loradag.config.validation import validate
from loradag.data.rows import read_rows
from loradag.data.token_contract import read_contract
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from tests.architectures import save_family
from tests.conftest import run_stages

SMALL = [
    "prepare.max_tokens=64", "train.packing_tokens=64", "evaluate.window=64", "evaluate.stride=32",
    "evaluate.samples=1", "evaluate.max_new_tokens=4", "prepare.eval_fraction=0.2", "merge.rows=2",
    "merge.max_new_tokens=4", "export=safetensors", "export.rows=1", "export.max_new_tokens=4",
    "train.max_steps=2", "train.warmup_steps=0", "train.checkpoint_steps=2", "adapter.r=4",
    "merge.tolerance.perplexity=1", "merge.tolerance.kl=1",
]  # fmt: skip
ALL = (
    "fetch", "source", "prepare", "quantize", "baseline", "train", "evaluate", "merge", "export",
)  # fmt: skip


def recipe(root: Path, name: str, family: str, pad: str, rows: list[dict[str, Any]]) -> Any:
    """The paths and the config of an experiment on stand-ins for its model and its data set."""
    save_family(family, root / "model")
    (root / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    stand_ins = [
        "model=local", f"model.path={root}/model", f"model.pad_token={pad}",
        "prepare.source=file", "prepare.id=null", f"prepare.path={root}/rows.jsonl",
    ]  # fmt: skip
    config = validate(plain(compose([f"experiment={name}", *stand_ins, *SMALL])))
    return Paths(root / "project"), config


def guanaco(root: Path) -> Any:
    """Texts that are rendered already, in Llama 2's template."""
    rows = [
        {"text": f"<s>[INST] What is {n}? [/INST] The number {n}. {'And so on. ' * (n % 20)}</s>"}
        for n in range(80)
    ]
    return recipe(root, "llama2_guanaco", "Llama 2", "'<unk>'", rows)


def quotes(root: Path) -> Any:
    rows = [{"quote": f"All {n} things pass.", "author": f"Author {n}"} for n in range(80)]
    return recipe(root, "gemma_quotes", "Gemma", "null", rows)


def test_a_rendered_text_keeps_its_one_bos_and_eos(tmp_path) -> None:
    paths, config = guanaco(tmp_path)
    report = run_stages(paths, config, "fetch", "prepare")["prepare"]
    tokenizer = load_tokenizer(paths.base)
    rows = read_rows(paths.prepared / "train.parquet")
    for row in rows:
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert row.input_ids.count(tokenizer.bos_token_id) == 1
        assert row.text.count("[INST]") == 1  # never rendered twice
        assert row.input_ids.count(tokenizer.eos_token_id) == (len(row.input_ids) < 64)
    assert report["truncated_rows"] == sum(
        len(row.input_ids) == 64 for name in ("train", "eval", "calibration")
        for row in read_rows(paths.prepared / f"{name}.parquet")
    )  # fmt: skip
    assert report["truncated_rows"]
    assert read_contract(paths.contract).template.kind == "rendered"


def test_quotes_have_bos_and_learn_eos(tmp_path) -> None:
    paths, config = quotes(tmp_path)
    run_stages(paths, config, "fetch", "prepare")
    tokenizer = load_tokenizer(paths.base)
    for row in read_rows(paths.prepared / "train.parquet"):
        assert row.input_ids[0] == tokenizer.bos_token_id
        assert row.input_ids[-1] == tokenizer.eos_token_id
        assert row.completion_mask[-1] == 1
        assert row.text.startswith("Quote: All ")


@pytest.mark.slow
@pytest.mark.parametrize("make", [guanaco, quotes])
def test_recipes_run_end_to_end(tmp_path, make) -> None:
    paths, config = make(tmp_path)
    reports = run_stages(paths, config, *ALL)
    assert reports["train"]["steps"] == 2
    assert reports["merge"]["passed"]
    assert reports["export"]["files"]
