from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from loradag.config.problems import ConfigError, LoradagError
from loradag.models.loading import is_quantized, load_quantized
from stages.quantize import quantize
from tests.conftest import run_stages, smoke_config

KEYS = {
    "scheme", "parameters", "quantized_parameters", "bits_per_weight", "bytes", "bytes_full",
    "rmse", "layers", "peak_rss_bytes",
}  # fmt: skip


def test_none_only_says_so(project):
    paths, config = project("quantize=none")
    report = quantize(paths, config.quantize)
    assert [file.name for file in paths.quantized.iterdir()] == ["scheme.json"]
    assert not is_quantized(paths)
    assert report.keys() >= KEYS
    assert (report["bits_per_weight"], report["rmse"], report["layers"]) == (32, 0, [])


def test_a_scheme_leaves_a_loadable_folder_and_the_whole_report(project):
    paths, config = project("quantize=nf4")
    report = quantize(paths, config.quantize)
    assert is_quantized(paths)
    assert report.keys() >= KEYS | {"sqnr_db", "histogram"}
    assert 18 < report["sqnr_db"] < 22  # normal weights in NF4: about 20.7 dB
    names = {file.name for file in paths.quantized.iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "scheme.json"}


AWQ = ("quantize=symmetric", "quantize.bits=4", "quantize.granularity=group",
       "quantize.rounding=awq")  # fmt: skip


def test_awq_is_calibrated_on_rows_that_were_set_aside(project):
    paths, config = project(*AWQ, "quantize.group_size=32", "quantize.calibration_rows=3")
    assert config.inputs.calibration == "data/prepared/calibration.parquet"
    reports = run_stages(paths, config, "prepare", "quantize")
    assert reports["quantize"]["calibration_rows"] == 3
    assert reports["quantize"]["information_bits_per_weight"] > 4 + 32 / 32
    first = (paths.quantized / "model.safetensors").read_bytes()
    run_stages(paths, config, "quantize")
    assert (paths.quantized / "model.safetensors").read_bytes() == first


def test_gptq_is_calibrated_and_loads_as_nearest_rounding_does(project):
    """The folder's form is the same: only the codes differ."""
    paths, config = project(
        "quantize=asymmetric",
        "quantize.bits=4",
        "quantize.rounding=gptq",
        "quantize.calibration_rows=6",
    )
    run_stages(paths, config, "prepare")
    found = {}
    for rounding, rows in (("nearest", None), ("gptq", 6)):
        chosen = replace(config.quantize, rounding=rounding)
        report = run_stages(paths, replace(config, quantize=chosen), "quantize")["quantize"]
        assert report.get("calibration_rows") == rows
        found[rounding] = load_file(paths.quantized / "model.safetensors")
        assert load_quantized(paths, torch.float32)(torch.tensor([[1, 2]])).logits.isfinite().all()
    assert found["nearest"].keys() == found["gptq"].keys()
    changed = {n for n, t in found["nearest"].items() if not torch.equal(t, found["gptq"][n])}
    assert changed
    assert all(name.endswith("qdata") for name in changed)


def test_awq_is_refused_with_groups_of_full_rows(project):
    paths, config = project(*AWQ, "quantize.group_size=64")
    with pytest.raises(LoradagError, match=r"group_size = 64: is a full row"):
        run_stages(paths, config, "prepare", "quantize")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["quantize=symmetric", "quantize.bits=1"], "quantize.bits = 1: must be from 2 to 8"),
        (["quantize=symmetric", "quantize.bits=9"], "quantize.bits = 9: must be from 2 to 8"),
        (["quantize=asymmetric", "quantize.granularity=group"], "quantize.group_size"),
        (["quantize=dynamic_w8a8", "quantize.granularity=group"], "Choose tensor or channel"),
        (
            ["quantize=static_w8a8", "quantize.activation_zero_point=true"],
            "quantize.activation_zero_point=false",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_work(overrides, message):
    with pytest.raises(ConfigError, match=message):
        smoke_config(*overrides)
