import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loradag.checkpoints.safetensors_reader import read_metadata, read_tensors
from loradag.checkpoints.safetensors_writer import AppendingWriter
from loradag.config.problems import LoradagError
from loradag.models.loading import load_model
from loradag.quantization.calibration import calibrate
from loradag.quantization.conversion import linear_layers, measure_unquantized, quantize_checkpoint
from loradag.quantization.dequantize import dequantized
from tests.quantization.options import SCHEMES, options

ROWS = [[1, *range(20 * i + 3, 20 * i + 23)] for i in range(4)]
BNB = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module", params=SCHEMES)
def made(request, tiny_base, tmp_path_factory):
    """(scheme, folder, report) of the tiny base quantised."""
    folder = tmp_path_factory.mktemp(request.param)
    chosen, qparams = options(request.param), None
    if request.param == "static_w8a8":
        qparams = calibrate(tiny_base, folder, ROWS, chosen)
    return request.param, folder, quantize_checkpoint(tiny_base, folder, chosen, qparams)


def equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("scheme", BNB)
def test_it_is_what_transformers_would_have_saved(scheme, tiny_base, tmp_path):
    quantize_checkpoint(tiny_base, tmp_path, options(scheme))
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base,
        quantization_config=BitsAndBytesConfig(**BNB[scheme]),
        device_map={"": "cpu"},
        dtype=torch.float32,
    )
    model.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs/model.safetensors")
    assert equal(load_file(tmp_path / "model.safetensors"), theirs)


def test_loaded_again_every_bit_is_the_same(made):
    _, folder, _ = made
    loaded = load_model(folder, torch.float32)
    held, _ = loaded.hf_quantizer.get_state_dict_and_metadata(loaded)
    held = held or loaded.state_dict()  # bitsandbytes' layers flatten themselves
    held.pop("lm_head.weight")  # tied, so stored once
    assert equal(load_file(folder / "model.safetensors"), held)


def test_two_runs_write_the_same_bytes(made, tiny_base, tmp_path):
    scheme, folder, _ = made
    qparams = None
    if scheme == "static_w8a8":
        qparams = calibrate(tiny_base, tmp_path, ROWS, options(scheme))
    quantize_checkpoint(tiny_base, tmp_path, options(scheme), qparams)
    for file in sorted(folder.iterdir()):
        assert file.read_bytes() == (tmp_path / file.name).read_bytes(), file.name


def test_the_dequantised_weights_are_those_the_model_computes_with(made, tiny_base):
    scheme, folder, _ = made
    restored = dict(dequantized(folder))
    base = dict(read_tensors(tiny_base))
    assert restored.keys() == base.keys()
    twin = load_model(tiny_base, torch.float32)
    twin.load_state_dict(restored | {"lm_head.weight": restored["model.embed_tokens.weight"]})
    ids = torch.tensor(ROWS)
    with torch.inference_mode():
        got, expected = load_model(folder, torch.float32)(ids).logits, twin(ids).logits
    # int8 and W8A8 round activations as well
    bound = 0.02 if "8" in scheme else 1e-6
    assert (got - expected).norm() / expected.norm() < bound


def test_the_report_adds_up(made, tiny_base):
    scheme, folder, report = made
    restored, base = dict(dequantized(folder)), dict(read_tensors(tiny_base))
    noise = sum((restored[n] - base[n]).double().square().sum().item() for n in base)
    linear = [f"{layer['name']}.weight" for layer in report["layers"]]
    assert len(linear) == 14
    assert report["quantized_parameters"] == sum(base[name].numel() for name in linear)
    assert report["parameters"] == sum(weight.numel() for weight in base.values()) == 139_584
    assert report["rmse"] == pytest.approx((noise / report["quantized_parameters"]) ** 0.5)
    assert report["bytes"] == (folder / "model.safetensors").stat().st_size
    kept = sum(base[name].nbytes for name in base if name not in linear)
    stored = sum(value.nbytes for value in load_file(folder / "model.safetensors").values())
    assert report["bits_per_weight"] * report["quantized_parameters"] / 8 == stored - kept
    assert sum(report["histogram"]["counts"]) == base[linear[0]].numel(), scheme
    json.dumps(report, allow_nan=False)


def test_unquantised_bits_are_those_it_is_stored_at(tiny_base):
    report = measure_unquantized(tiny_base)
    assert (report["bits_per_weight"], report["parameters"]) == (32, 139_584)


def test_shards_carry_the_metadata_and_load(tiny_base, tmp_path):
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    whole.mkdir()
    shards.mkdir()
    quantize_checkpoint(tiny_base, whole, options("symmetric"))
    state, metadata = load_file(whole / "model.safetensors"), read_metadata(whole)
    with AppendingWriter(shards, "150KB") as writer:
        writer.metadata = metadata
        for name, tensor in state.items():
            writer.write(name, tensor)
    assert len(list(shards.glob("*.safetensors"))) > 1
    shutil.copy(whole / "config.json", shards)
    ids = torch.tensor(ROWS)
    with torch.inference_mode():
        one, several = (load_model(path, torch.float32)(ids).logits for path in (whole, shards))
    assert torch.equal(one, several)
    assert all(
        torch.equal(a[1], b[1])
        for a, b in zip(dequantized(whole), dequantized(shards), strict=True)
    )


def test_a_sharded_base_gives_the_same(tiny_base, tmp_path):
    load_model(tiny_base, torch.float32).save_pretrained(tmp_path / "base", max_shard_size="100KB")
    for name, base in (("one", tiny_base), ("several", tmp_path / "base")):
        (tmp_path / name).mkdir()
        quantize_checkpoint(base, tmp_path / name, options("nf4"))
    one, several = (load_file(tmp_path / n / "model.safetensors") for n in ("one", "several"))
    assert equal(one, several)


def test_skipped_modules_stay_as_they_are(tiny_base, tmp_path):
    report = quantize_checkpoint(tiny_base, tmp_path, options("nf4", skip_modules=["down_proj"]))
    assert len(report["layers"]) == 12
    loaded = load_model(tmp_path, torch.float32)
    kept = loaded.model.layers[1].mlp.down_proj.weight
    assert torch.equal(kept, dict(read_tensors(tiny_base))["model.layers.1.mlp.down_proj.weight"])


def broken(tiny_base, folder, value):
    shutil.copytree(tiny_base, folder)
    state = load_file(folder / "model.safetensors")
    state["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tiny_base, tmp_path, value):
    base = broken(tiny_base, tmp_path / "base", value)
    with pytest.raises(LoradagError, match=r"layers\.1\.mlp\.up_proj\.weight.*NaN or infinite"):
        quantize_checkpoint(base, tmp_path, options("symmetric"))


def test_a_group_size_must_divide_the_rows(tiny_base, tmp_path):
    with pytest.raises(LoradagError, match=r"group_size = 48.*64, 128.*divisor of 64"):
        quantize_checkpoint(tiny_base, tmp_path, options("asymmetric", group_size=48))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("skip", "message"),
    [(["foo_proj"], "down_proj, gate_proj"), ([r".*proj"], "leaves no linear layer")],
)
def test_skip_modules_that_make_no_sense(tiny_base, skip, message):
    from transformers import AutoConfig

    with pytest.raises(LoradagError, match=message):
        linear_layers(AutoConfig.from_pretrained(tiny_base), skip)


def test_layers_that_are_no_linear_ones_are_named() -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, vocab_size=64)
    with pytest.raises(LoradagError, match=r"layers of GPT2LMHeadModel are Conv1D, not Linear"):
        linear_layers(config, [])
