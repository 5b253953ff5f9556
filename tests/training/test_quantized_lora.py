"""A and B on a quantization lattice: while they train, and as they are saved."""

import torch
from safetensors.torch import load_file

from loradag.quantization.fake_quantize import AbsmaxFakeQuantizer
from loradag.training.lora import add_adapter
from loradag.training.quantized_lora import quantize_adapter, save_quantized_adapter
from tests.conftest import smoke_config
from tests.training.conftest import corpus, teach


def quantized(model, tmp_path, bits: int = 4) -> object:
    adapter = smoke_config("adapter=quantized_lora", f"adapter.bits={bits}").adapter
    return quantize_adapter(add_adapter(model, adapter, tmp_path, tmp_path), adapter)


def test_what_is_saved_computes_what_was_trained(fresh, tmp_path) -> None:
    from peft import PeftModel

    tuned = quantized(fresh(), tmp_path)
    teach(tuned, 10)
    masters = [p.detach().clone() for p in tuned.parameters() if p.requires_grad]
    ids = corpus()[:4]
    with torch.no_grad():
        trained = tuned(ids).logits
        untrained = fresh()(ids).logits
    save_quantized_adapter(tuned, tmp_path / "saved", tmp_path, "random")

    loaded = PeftModel.from_pretrained(fresh(), tmp_path / "saved").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trained, rtol=0, atol=1e-5)
        merged = loaded.merge_and_unload()(ids).logits
    torch.testing.assert_close(merged, trained, rtol=0, atol=1e-4)
    assert (trained - untrained).abs().max() > 0.1
    # The masters were not on the lattice: rounding changes them.
    stored = [p for p in tuned.parameters() if p.requires_grad]
    assert not any(torch.equal(*pair) for pair in zip(masters, stored, strict=True))


def test_the_stored_factors_are_on_their_grid(fresh, tmp_path) -> None:
    tuned = quantized(fresh(), tmp_path, bits=3)
    teach(tuned, 5)
    save_quantized_adapter(tuned, tmp_path / "saved", tmp_path, "random")
    stored = load_file(tmp_path / "saved/adapter_model.safetensors")
    assert len(stored) == 2 * 2 * 7
    for factor in stored.values():
        torch.testing.assert_close(AbsmaxFakeQuantizer(3)(factor), factor, rtol=1e-6, atol=0)
        assert all(len(row.unique()) <= 7 for row in factor)
        assert factor.abs().sum() > 0
