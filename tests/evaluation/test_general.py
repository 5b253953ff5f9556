"""Perplexity on text outside the tuning data."""

import json
import math
from pathlib import Path

import pytest
import torch

from loradag.config.composition import compose
from loradag.config.problems import ConfigError, LoradagError
from loradag.evaluation.general import general_texts
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
from tests.conftest import run_stages, smoke_config

REST = (
    "train.max_steps=1",
    "train.warmup_steps=0",
    "train.checkpoint_steps=1",
    "evaluate.dtype=float32",
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "general.jsonl"
    rows = [{"body": f"The river number {n} runs to the sea."} for n in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], {"other": "x"}]))
    return path


def test_it_is_measured_for_base_quantized_and_adapter(project, texts) -> None:
    options = [f"evaluate.general.path={texts}", "evaluate.general.source=file"]
    paths, config = project(*options, "evaluate.general.text='{body}'", *REST)
    reports = run_stages(paths, config, "prepare", "quantize", "train", "baseline", "evaluate")
    general = reports["evaluate"]["general"]
    assert general.keys() == {"base", "quantized", "adapter"}
    assert {name: general[name] for name in ("base", "quantized")} == reports["baseline"]["general"]

    model, tokenizer = load_model(paths.base, torch.float32), load_tokenizer(paths.base)
    nll, tokens = 0.0, 0
    for n in range(9):
        ids = torch.tensor([tokenizer(f"The river number {n} runs to the sea.")["input_ids"]])
        with torch.no_grad():
            nll += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    assert general["base"]["tokens"] == tokens
    assert math.isclose(general["base"]["perplexity"], math.exp(nll / tokens), rel_tol=1e-4)


def test_without_a_source_the_report_has_no_such_key(project) -> None:
    paths, config = project("evaluate.general.source=none", *REST)
    reports = run_stages(paths, config, "prepare", "quantize", "train", "baseline", "evaluate")
    assert "general" not in reports["evaluate"]
    assert "tasks" not in reports["evaluate"]


def test_a_missing_file_is_named_by_its_own_key(tmp_path) -> None:
    options = ["evaluate.general.source=file", f"evaluate.general.path={tmp_path}/no.jsonl"]
    with pytest.raises(LoradagError, match=r"^evaluate\.general\.path = .*no such file"):
        general_texts(smoke_config(*options).evaluate.general)


def test_half_a_surrogate_pair_leaves_its_row_out(tmp_path) -> None:
    path = tmp_path / "general.jsonl"
    path.write_text('{"text": "half \\ud83d"}\n{"text": "whole"}\n')
    options = ["evaluate.general.source=file", f"evaluate.general.path={path}"]
    assert general_texts(smoke_config(*options).evaluate.general) == ["whole"]


def test_the_same_distinct_texts_each_time(texts) -> None:
    options = ["evaluate.general.source=file", f"evaluate.general.path={texts}"]
    general = smoke_config(*options, "evaluate.general.text='{body}'").evaluate.general
    general.rows = 5
    first = general_texts(general)
    assert len(set(first)) == 5
    lines = texts.read_text().splitlines()
    texts.write_text("\n".join(reversed(lines)) + "\n")
    assert general_texts(general) == first  # whatever the order of the rows


def test_a_field_that_no_row_has_is_named(texts) -> None:
    options = ["evaluate.general.source=file", f"evaluate.general.path={texts}"]
    general = smoke_config(*options, "evaluate.general.text='{nosuch}'").evaluate.general
    with pytest.raises(LoradagError, match="nosuch"):
        general_texts(general)


def test_the_tuning_data_is_no_general_text() -> None:
    assert compose([]).evaluate.general.source == "glosses"
    assert compose(["prepare=glosses"]).evaluate.general.source == "quotes"
    with pytest.raises(ConfigError, match="what is tuned on"):
        compose(["evaluate.general.source=quotes"])
    with pytest.raises(ConfigError, match="must be a commit"):
        compose(["evaluate.general.source=hub", "evaluate.general.id=a/b",
                 "evaluate.general.split=train", "evaluate.general.revision=main"])  # fmt: skip
