"""One dtype: every float parameter computes in the one that was asked for, in every loader."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open

from loradag.config.problems import LoradagError
from loradag.export.folders import write_safetensors
from loradag.models.loading import load_base, load_model, load_quantized, load_tuned
from loradag.models.precision import cast_parameters, verify_dtype
from loradag.quantization.calibration import calibrate
from loradag.quantization.conversion import quantize_checkpoint
from loradag.runtime import Paths
from tests.conftest import run_stages, smoke_config
from tests.quantization.options import SCHEMES, options

DTYPES = [torch.float32, torch.bfloat16]
STORED = [torch.float32, torch.float16, torch.bfloat16]
ROWS = [[1, *range(20 * i + 3, 20 * i + 23)] for i in range(4)]
IDS = torch.tensor(ROWS)


def name_of(dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.fixture(scope="module")
def made(tiny_base, tmp_path_factory):
    """Makes the paths of a run whose base is stored in a dtype, quantised, with an adapter."""
    root = tmp_path_factory.mktemp("precision")

    def make(scheme: str, stored: torch.dtype) -> Paths:
        paths = Paths(root / f"{scheme}-{name_of(stored)}")
        if paths.base.exists():
            return paths
        shutil.copytree(tiny_base, paths.base)
        model = load_model(tiny_base, stored)
        model.save_pretrained(paths.base)
        paths.quantized.mkdir(parents=True)
        if scheme != "none":
            chosen, qparams = options(scheme), None
            if scheme == "static_w8a8":
                qparams = calibrate(paths.base, paths.quantized, ROWS, chosen)
            quantize_checkpoint(paths.base, paths.quantized, chosen, qparams)
        # Of all kinds: a magnitude of dora, and a module trained in full.
        tuned = get_peft_model(
            model,
            LoraConfig(
                r=2,
                use_dora=True,
                target_modules=["q_proj", "down_proj"],
                modules_to_save=["input_layernorm"],
            ),
        )
        tuned.save_pretrained(paths.adapter)
        return paths

    return make


def outputs_of_layers(model) -> dict[str, torch.dtype]:
    """The dtype of what each module that has a weight computes."""
    found: dict[str, torch.dtype] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, inputs, output, name=name: found.update({name: output.dtype})
        )
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    ]
    with torch.inference_mode():
        found["logits"] = model(IDS).logits.dtype
    for hook in hooks:
        hook.remove()
    return found


def check(model, dtype: torch.dtype) -> None:
    """Parameters, quantised weights and the output of every layer are of `dtype`."""
    assert verify_dtype(model, dtype) == name_of(dtype)
    floats = {p.dtype for p in model.parameters() if p.is_floating_point()}
    assert floats == {dtype}
    decoded = {
        module.weight.dequantize().dtype
        for module in model.modules()
        if type(getattr(module, "weight", None)).__module__.startswith("torchao")
    }
    assert decoded <= {dtype}
    others = {name: found for name, found in outputs_of_layers(model).items() if found != dtype}
    assert not others


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("stored", STORED, ids=name_of)
@pytest.mark.parametrize("scheme", ["none", *SCHEMES])
def test_every_loader_gives_the_dtype_it_is_asked_for(made, scheme, stored, dtype):
    paths = made(scheme, stored)
    check(load_base(paths, dtype), dtype)
    check(load_quantized(paths, dtype), dtype)
    check(load_tuned(paths, load_quantized(paths, dtype)), dtype)


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
def test_evaluation_in_float32_is_not_rounded_to_bfloat16(made, scheme):
    """On CPUs with AVX512-bf16, bitsandbytes packs weights anew when a model is evaluated."""
    from loradag.quantization.dequantize import dequantized

    paths = made(scheme, torch.float32)
    model, twin = load_quantized(paths, torch.float32), load_base(paths, torch.float32)
    restored = dict(dequantized(paths.quantized))
    twin.load_state_dict(restored | {"lm_head.weight": restored["model.embed_tokens.weight"]})
    with torch.inference_mode():
        got, expected = model(IDS).logits, twin(IDS).logits
    assert (got - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize(
    ("scheme", "stored", "dtype"),
    [
        ("none", torch.float16, "bfloat16"),
        ("nf4", torch.float16, "float32"),
        ("nf4", torch.bfloat16, "bfloat16"),
        ("int8", torch.float16, "bfloat16"),
        ("dynamic_w8a8", torch.float16, "float32"),
    ],
)
def test_stages_report_the_dtype_that_computed(made, tmp_path, scheme, stored, dtype):
    source = made(scheme, stored)
    paths = Paths(tmp_path)
    for place in ("base", "quantized"):
        shutil.copytree(getattr(source, place), getattr(paths, place))
    config = smoke_config(
        f"quantize={scheme}",
        f"train.dtype={dtype}",
        f"evaluate.dtype={dtype}",
        "train.max_steps=1",
        "train.warmup_steps=0",
        "prepare.max_rows=60",
        "merge.rows=2",
    )
    reports = run_stages(paths, config, "prepare", "train", "baseline", "evaluate", "merge")
    computed = {stage: reports[stage]["dtype"] for stage in ("train", "baseline", "evaluate")}
    assert computed == dict.fromkeys(computed, dtype)
    assert reports["merge"]["dtype"] == "float32"  # what rounding alone explains is seen only there
    # The files keep the dtype of the base, and load in any.
    write_safetensors(paths.merged, paths.export, "5GB")
    assert stored_dtypes(paths.merged) == stored_dtypes(paths.export) == {stored}
    for folder in (paths.merged, paths.export):
        for asked in DTYPES:
            check(load_model(folder, asked), asked)


def stored_dtypes(folder: Path) -> set[torch.dtype]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118


def test_a_parameter_of_another_dtype_is_refused(made):
    model = load_quantized(made("nf4", torch.float32), torch.float32)
    norm = model.model.norm
    norm.weight.data = norm.weight.data.half()
    message = r"model\.norm\.weight computes in float16, not in the model's dtype float32"
    with pytest.raises(LoradagError, match=message):
        verify_dtype(model, torch.float32)
    with pytest.raises(LoradagError, match="computes in float16"):  # autocast lifts float32 alone
        verify_dtype(model, torch.bfloat16, autocast=torch.bfloat16)
    cast_parameters(model, torch.float32)
    verify_dtype(model, torch.float32)


def test_four_bit_weights_that_decode_to_another_dtype_are_refused(made):
    model = load_quantized(made("nf4", torch.float32), torch.float32)
    model.model.layers[0].mlp.up_proj.weight.quant_state.dtype = torch.float16
    with pytest.raises(LoradagError, match=r"up_proj\.weight computes in float16"):
        verify_dtype(model, torch.float32)


def test_float32_masters_compute_in_the_dtype_of_autocast(made):
    model = load_base(made("none", torch.float32), torch.float32)
    assert verify_dtype(model, torch.bfloat16, autocast=torch.bfloat16) == "bfloat16"
    with pytest.raises(LoradagError, match="computes in float32"):
        verify_dtype(model, torch.bfloat16)


def test_what_an_architecture_keeps_in_float32_is_left_alone(made, monkeypatch):
    model = load_base(made("none", torch.float32), torch.bfloat16)
    monkeypatch.setattr(model, "_keep_in_fp32_modules_strict", ["model.norm"])
    model.model.norm.float()
    cast_parameters(model, torch.bfloat16)
    assert model.model.norm.weight.dtype == torch.float32
    assert verify_dtype(model, torch.bfloat16) == "bfloat16"
