"""Quantisation-aware training: what it converts to is what it trained, and is worth it."""

import copy
from pathlib import Path

import pytest
import torch

from loradag.checkpoints.model_files import NOTE
from loradag.config.problems import LoradagError
from loradag.config.train import Train
from loradag.models.activations import inner_linears
from loradag.models.loading import load_model
from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.training import qat
from loradag.training.lora import add_adapter
from tests.conftest import smoke_config
from tests.training.conftest import STEPS, corpus, loss_of, teach

QAT = ("quantize=none", "train=qat")


def options(*overrides: str) -> Train:
    return smoke_config(*QAT, *overrides).train


def with_adapter(model, train: Train, tmp_path: Path, *overrides: str):
    adapter = smoke_config(*QAT, *overrides).adapter
    base = qat.fake_quantize(model, train)
    return qat.check_adapted_layers(add_adapter(base, adapter, tmp_path, tmp_path, qat.LAYERS))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(corpus()[:4]).logits


@pytest.mark.parametrize("activations", ["null", "8"])
def test_the_converted_model_computes_what_was_trained(fresh, tmp_path, activations) -> None:
    train = options("train.weight_bits=3", f"train.activation_bits={activations}")
    model = teach(qat.fake_quantize(fresh(), train), 5)
    trained = logits(model)
    qat.save(model, tmp_path / "saved", train)
    loaded = load_model(tmp_path / "saved", torch.float32)
    torch.testing.assert_close(logits(loaded), trained, rtol=0, atol=1e-5)
    if activations == "8":  # rounding of activations is no weight: without its note it is lost
        (tmp_path / "saved" / NOTE).unlink()
        lost = logits(load_model(tmp_path / "saved", torch.float32))
        assert (lost - trained).abs().max() > 1e-4


def test_weights_are_on_the_grid_and_embeddings_are_not(fresh) -> None:
    train = options("train.weight_bits=3")
    converted = qat.convert(qat.fake_quantize(fresh(), train))
    assert len(inner_linears(converted)) == 2 * 7
    quantizer = AbsmaxFakeQuantizer(3, train.group_size)
    for linear in inner_linears(converted).values():
        assert type(linear) is torch.nn.Linear
        torch.testing.assert_close(quantizer(linear.weight), linear.weight, rtol=1e-6, atol=0)
    embedding = converted.get_input_embeddings().weight
    assert torch.equal(embedding, fresh().get_input_embeddings().weight)
    assert converted.get_output_embeddings().weight is embedding


@pytest.mark.parametrize("variant", ["lora", "rslora"])
def test_an_adapter_is_trained_inside_the_rounding(fresh, tmp_path, variant) -> None:
    """Merging and then rounding is what training computed; adding beside would not be."""
    train = options("train.weight_bits=3")
    overrides = (
        f"adapter={variant}",
        "adapter.alpha=32",
        "adapter.target_modules=[q_proj,up_proj]",
    )
    tuned = teach(with_adapter(fresh(), train, tmp_path, *overrides), 10, rate=1e-2)
    names = [name for name, p in tuned.named_parameters() if p.requires_grad]
    assert len(names) == 2 * 2 * 2
    assert all(".lora_" in name for name in names)
    trained = logits(tuned)

    beside = copy.deepcopy(tuned)
    for module in beside.modules():  # peft's own sum: round(W) x + scale B A x
        if isinstance(module, qat.QuantizedSum):
            module.__class__ = qat.LoraLinear
    assert (logits(beside) - trained).abs().max() > 1e-2

    converted = qat.convert(tuned)
    torch.testing.assert_close(logits(converted), trained, rtol=0, atol=1e-5)
    assert len(inner_linears(converted)) == 2 * 7


def test_dropout_disturbs_training_alone(fresh, tmp_path) -> None:
    train = options()
    tuned = with_adapter(fresh(), train, tmp_path, "adapter=lora", "adapter.dropout=0.5")
    teach(tuned, 3, rate=1e-2)
    assert torch.equal(logits(tuned), logits(tuned))
    tuned.train()
    with torch.no_grad():
        one, other = (tuned(corpus()[:4]).logits for _ in range(2))
    assert not torch.equal(one, other)


def test_it_loses_less_than_rounding_after_ordinary_training(taught, fresh) -> None:
    """The same quantiser, data, steps and rate: only when the rounding came differs."""
    train = options("train.weight_bits=2")
    ordinary = load_model(taught, torch.float32)
    full = loss_of(ordinary)
    ptq = loss_of(qat.convert(qat.fake_quantize(ordinary, train)))
    aware = loss_of(qat.convert(teach(qat.fake_quantize(fresh(), train), STEPS)))
    print(f"full {full:.3f}, PTQ {ptq:.3f}, QAT {aware:.3f} nats a token")
    assert full < aware < ptq / 2


def test_groups_must_divide_the_rows(fresh) -> None:
    with pytest.raises(LoradagError, match=r"train\.group_size = 48.*rows of 64"):
        qat.fake_quantize(fresh(), options("train.group_size=48"))


def test_the_output_layer_takes_no_adapter(fresh, tmp_path) -> None:
    with pytest.raises(LoradagError, match=r"adapter\.target_modules: .*lm_head"):
        with_adapter(
            fresh(), options(), tmp_path, "adapter=lora", "adapter.target_modules=[q_proj,lm_head]"
        )
