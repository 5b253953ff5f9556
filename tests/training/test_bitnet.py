"""BitNet b1.58: the rounding against numpy and transformers, the saved model, what it learns."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.integrations.bitnet import AutoBitLinear, BitLinear, WeightQuant, unpack_weights

from loradag.config.problems import LoradagError
from loradag.models.loading import load_model
from loradag.training import bitnet
from tests.training.conftest import STEPS, corpus, loss_of, teach


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(corpus()[:4]).logits


def watch(model) -> dict:
    """A dict that each ternary layer's (inputs, outputs) go into, at every forward pass."""
    seen = {}
    for name, layer in model.named_modules():
        if isinstance(layer, AutoBitLinear):
            layer.register_forward_hook(
                lambda _, inputs, outputs, name=name: seen.update({name: (inputs[0], outputs)})
            )
    return seen


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    """The layers and logits of a model trained from its random start, and where it was saved."""
    model = teach(bitnet.load_masters(tiny_base), STEPS)
    folder = tmp_path_factory.mktemp("bitnet") / "saved"
    layers = watch(model)
    before = logits(model)
    bitnet.save(model, folder)
    return layers, before, folder


def test_weights_round_by_their_mean_size() -> None:
    weight = torch.randn(64, 32) * 0.02
    codes, inverse = bitnet.ternary(weight)
    gamma = np.abs(weight.numpy()).mean()
    np.testing.assert_allclose(1 / inverse.item(), gamma, rtol=1e-6)
    np.testing.assert_array_equal(codes, np.clip(np.round(weight.numpy() / gamma), -1, 1))
    assert sorted(codes.unique().tolist()) == [-1, 0, 1]
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(codes / inverse, WeightQuant.apply(weight))


def test_masters_train_through_both_roundings(tiny_base) -> None:
    model = bitnet.load_masters(tiny_base)
    ids = corpus()[:4]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_saved_model_computes_what_was_trained(trained) -> None:
    layers, before, folder = trained
    loaded = load_model(folder, torch.float32)
    assert len(layers) == 2 * 7
    for name, (inputs, outputs) in layers.items():
        largest = float(outputs.abs().max())
        with torch.no_grad():
            again = loaded.get_submodule(name)(inputs)
        torch.testing.assert_close(again, outputs, rtol=0, atol=1e-5 * largest)
    # Through several layers, the rounding of a float can take an activation to the next code.
    after = logits(loaded)
    close = (after - before).abs().amax(-1) < 2e-4
    assert close.float().mean() > 0.9
    assert torch.equal(after.argmax(-1), before.argmax(-1))


def test_weights_are_ternary_and_four_to_a_byte(trained) -> None:
    _, _, folder = trained
    stored = load_file(folder / "model.safetensors")
    packed = {name for name, tensor in stored.items() if tensor.dtype == torch.uint8}
    assert len(packed) == 2 * 7
    for name in packed:
        assert set(unpack_weights(stored[name], torch.float32).unique().tolist()) == {-1, 0, 1}
        assert stored[f"{name}_scale"].shape == (1,)
    # 7 matrices of two layers: q, o 64×64; k, v 32×64; gate, up, down 64×128
    matrices = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert sum(stored[name].nbytes for name in packed) == matrices / 4
    assert stored["model.embed_tokens.weight"].dtype == torch.float32
    assert "lm_head.weight" not in stored


def test_activations_are_int8_by_token(trained) -> None:
    layer = load_model(trained[2], torch.float32).model.layers[0].mlp.down_proj
    assert isinstance(layer, BitLinear)
    inputs = torch.randn(2, 5, layer.in_features)
    codes, scale = layer.activation_quant(inputs)
    assert codes.dtype == torch.int8
    assert (codes.abs().amax(-1) == 127).all()
    torch.testing.assert_close(codes / scale, inputs, rtol=0, atol=float(0.51 / scale.min()))
    # y = (q · T) / (s / gamma), in whole numbers until the last step
    ternary = unpack_weights(layer.weight, torch.float32)
    whole = codes.to(torch.int32) @ ternary.to(torch.int32).T
    torch.testing.assert_close(layer(inputs), whole / (scale * layer.weight_scale))


def test_training_from_scratch_learns_and_conversion_ruins(trained, taught, tmp_path) -> None:
    """An ordinary model made ternary without training is as lost as a random one."""
    ordinary = loss_of(load_model(taught, torch.float32))
    learned = loss_of(load_model(trained[2], torch.float32))
    bitnet.save(bitnet.load_masters(taught), tmp_path / "converted")
    converted = loss_of(load_model(tmp_path / "converted", torch.float32))
    uniform = math.log(1024)
    print(f"ordinary {ordinary:.3f}, from scratch {learned:.3f}, converted {converted:.3f} nats")
    assert learned < uniform / 4
    assert converted > 2 * max(learned, ordinary)


def test_rows_that_do_not_pack_are_refused(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=24, intermediate_size=30, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(LoradagError, match=r"gate_proj has 30 rows, which do not pack 4"):
        bitnet.load_masters(tmp_path)
