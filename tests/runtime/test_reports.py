"""A renamed key passes nowhere: not when a report is written, not when it is read."""

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml

from loradag.config.composition import compose, write_params
from loradag.config.problems import LoradagError
from loradag.runtime import Paths, run_stage
from loradag.runtime.report_files import check_report, read_report, read_reports, report_type
from loradag.runtime.report_keys import Reports
from tests.conftest import ROOT
from tests.reporting.example import reports

# What others read: these names stay.
FIXED = {
    "fetch": "parameters bytes revision architecture",
    "prepare": "rows_in rows_kept dropped train_rows eval_rows calibration_rows train_tokens "
    "eval_tokens trained_token_fraction truncated_rows token_length template",
    "quantize": "scheme parameters quantized_parameters bits_per_weight bytes bytes_full sqnr_db "
    "rmse layers peak_rss_bytes seconds",
    "train": "method trainable_parameters total_parameters steps tokens final_loss "
    "tokens_per_second seconds peak_memory_bytes resumed_from_step dtype device",
    "evaluate": "base quantized adapter samples",
    "merge": "base max_abs_logit_diff mean_kl perplexity_before perplexity_after greedy_match "
    "passed peak_rss_bytes",
    "export": "files",
}
NESTED = {
    ("prepare", "token_length"): "p50 p95 max",
    ("evaluate", "adapter"): "perplexity nll bits_per_byte tokens",
    ("evaluate", "samples", 0): "prompt base adapter",
    ("quantize", "layers", 0): "name sqnr_db rmse",
    ("export", "files", 0): "format path bytes sha256",
    ("export", "formats", "gguf_f16"): "perplexity runtime token_ids_match tokens_per_second",
}


@pytest.mark.parametrize("stage", FIXED)
def test_published_keys_keep_their_names(stage: str) -> None:
    assert set(FIXED[stage].split()) <= set(get_type_hints(report_type(stage)))


@pytest.mark.parametrize("path", NESTED, ids=str)
def test_published_keys_within_reports_keep_their_names(path: tuple[Any, ...]) -> None:
    value: Any = reports()
    for part in path:
        value = value[part]
    assert set(NESTED[path].split()) <= set(value)


def test_every_stage_with_a_report_has_its_class_in_the_order_of_the_dag() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert list(Reports.__annotations__) == [name for name in stages if name != "report"]


@pytest.mark.parametrize("stage", FIXED)
def test_a_renamed_key_is_refused_at_both_ends(stage: str, tmp_path: Path) -> None:
    good = check_report(stage, reports()[stage])
    key = next(iter(FIXED[stage].split()))
    renamed = {f"{name}_" if name == key else name: value for name, value in good.items()}
    with pytest.raises(LoradagError) as refused:
        check_report(stage, renamed)
    assert f"- {key}: " in str(refused.value)
    assert f"- {key}_: " in str(refused.value)
    path = tmp_path / f"{stage}.json"
    path.write_text(json.dumps(renamed))
    with pytest.raises(LoradagError, match=f"dvc repro -f {stage}"):
        read_reports(tmp_path)


def test_types_and_nested_keys_are_checked() -> None:
    report = check_report("export", reports()["export"])
    report["formats"]["gguf_f16"]["perplexity"] = "19"
    report["files"][0]["size"] = 1
    with pytest.raises(LoradagError) as refused:
        check_report("export", report)
    assert "formats.gguf_f16.perplexity" in str(refused.value)
    assert "files.0.size" in str(refused.value)


def test_none_is_left_out_of_the_file_and_is_there_when_it_is_read(tmp_path: Path) -> None:
    whole = reports()["quantize"]
    whole["layers"][0]["sqnr_db"] = None
    written = check_report("quantize", whole)
    assert "sqnr_db" not in written["layers"][0]
    assert "calibration_rows" not in written
    path = tmp_path / "quantize.json"
    path.write_text(json.dumps(written))
    assert read_report(path) == whole


def test_a_stage_without_a_class_is_refused() -> None:
    with pytest.raises(LoradagError, match=r"Define its keys in loradag/runtime/report_keys\.py"):
        check_report("polish", {})


def test_run_stage_writes_no_report_with_an_unknown_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(compose(["experiment=smoke"]), tmp_path)

    def fetch(paths: Paths) -> Any:
        return check_report("fetch", reports()["fetch"]) | {"paramters": 1}

    with pytest.raises(SystemExit, match=r"(?s)fetch: .*paramters: Extra inputs"):
        run_stage(fetch)
    assert not Paths(tmp_path).report("fetch").exists()
