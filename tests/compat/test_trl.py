import pytest
import torch
import trl.trainer.utils
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, LlamaConfig, PhiConfig
from trl import SFTConfig, SFTTrainer
from trl.trainer.utils import add_fused_lm_head

from loradag.compat.trl import keep_trained_parameters, loss_in_one_pass
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer
from loradag.quantization.conversion import quantize_checkpoint
from tests.products import ProductsByDtype
from tests.quantization.options import options


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("guarded", [True, False])
def test_an_adapter_on_a_quantized_base_stays_as_it_was(tiny_base, tmp_path, guarded):
    """Unguarded, trl rounds it; if it no longer does, the guard can go."""
    quantize_checkpoint(tiny_base, tmp_path, options("nf4"))
    model = get_peft_model(
        load_model(tmp_path, torch.float32), LoraConfig(r=2, target_modules="all-linear")
    )
    before = trained(model)
    restore = keep_trained_parameters(model)
    SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
        processing_class=load_tokenizer(tiny_base),
        train_dataset=Dataset.from_dict({"input_ids": [[1, 2, 3]]}),
    )
    if guarded:
        restore()
    after = trained(model)
    kept = all(
        after[name].dtype == before[name].dtype and torch.equal(after[name], before[name])
        for name in before
    )
    assert kept == guarded


def per_token(model, ids, labels, autocast=None):
    """The summed loss that trl asks for, and its gradient to the embedded tokens."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.autocast("cpu", autocast or torch.float32, enabled=autocast is not None):
        found = model(inputs_embeds=embedded, labels=labels, fused_lm_head=True)
    loss = -found.log_probs.sum()
    loss.backward()
    return loss.detach(), embedded.grad, found


def by_all_logits(model, ids, labels, autocast=None):
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with torch.autocast("cpu", autocast or torch.float32, enabled=autocast is not None):
        logits = model(inputs_embeds=embedded).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
        labels[:, 1:].flatten(),
        reduction="sum",
    )
    loss.backward()
    return loss.detach(), embedded.grad


LAYER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 300,
         "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}  # fmt: skip
OUTPUT_LAYERS = {
    "plain": LlamaConfig(**LAYER, tie_word_embeddings=False),
    "capped": Gemma2Config(**LAYER, final_logit_softcapping=3.0),
    "scaled": CohereConfig(**LAYER, logit_scale=0.3),
    "biased": PhiConfig(**LAYER),
}


def frozen(kind, dtype):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OUTPUT_LAYERS[kind], dtype=dtype)
    model.get_output_embeddings().weight.data.normal_()  # confident: no uniform distribution
    add_fused_lm_head(model.requires_grad_(False), outputs=("log_probs", "entropy", "is_top1"))
    return model


def batch():
    ids = torch.randint(0, 300, (3, 150), generator=torch.manual_seed(1))
    labels = torch.where(ids % 3 > 0, ids, -100)
    labels[2] = -100
    return ids, labels


@pytest.fixture
def one_pass():
    with loss_in_one_pass():
        yield


@pytest.mark.parametrize("kind", OUTPUT_LAYERS)
def test_the_loss_is_that_of_all_logits(one_pass, kind):
    model, (ids, labels) = frozen(kind, torch.float64), batch()
    loss, gradient, _ = per_token(model, ids, labels)
    expected, expected_gradient = by_all_logits(model, ids, labels)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    error = (gradient - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-6  # logits are rounded to float32


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_loss_in_bfloat16_is_as_exact_as_that_of_all_logits(one_pass, stored):
    ids, labels = batch()
    exact, exact_gradient = by_all_logits(frozen("plain", stored).double(), ids, labels)
    model = frozen("plain", stored)
    errors = []
    for way in (per_token, by_all_logits):
        loss, gradient, *_ = way(model, ids, labels, autocast=torch.bfloat16)
        off = (gradient.double() - exact_gradient).norm() / exact_gradient.norm()
        errors.append((float(abs(loss - exact) / exact), float(off)))
    (loss_error, gradient_error), (loss_by_logits, gradient_by_logits) = errors
    assert loss_error < loss_by_logits + 2**-12
    assert gradient_error < gradient_by_logits + 2**-8  # half a unit of bfloat16's last place


def test_all_products_of_an_output_layer_are_in_bfloat16_and_of_trained_tokens(one_pass):
    model, (ids, labels) = frozen("plain", torch.bfloat16), batch()
    with ProductsByDtype() as products:
        per_token(model, ids, labels)
    trained = int((labels[:, 1:] != -100).sum())
    layer = 300 * 32
    others = sum(p.numel() for p in model.model.layers.parameters() if p.dim() == 2) * ids.numel()
    assert products.found == {torch.bfloat16: 2 * trained * layer + 2 * others}


def test_a_batch_without_a_trained_token_has_a_loss_of_zero(one_pass):
    model, (ids, labels) = frozen("plain", torch.float32), batch()
    loss, gradient, _ = per_token(model, ids, torch.full_like(labels, -100))
    assert loss == 0
    assert not gradient.any()


@pytest.mark.parametrize("kind", ["plain", "biased"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_trained_output_layer_has_its_gradient(one_pass, kind, autocast):
    model, (ids, labels) = frozen(kind, torch.float32), batch()
    layer = model.get_output_embeddings().requires_grad_()
    gradients = []
    for way in (per_token, by_all_logits):
        layer.zero_grad()
        way(model, ids, labels, autocast=autocast)
        gradients.append([p.grad.clone() for p in layer.parameters()])
    for found, expected in zip(*gradients, strict=True):
        tolerance = 1e-5 if autocast is None else 2**-7  # of parts rounded one by one, twice
        assert (found - expected).norm() < tolerance * expected.norm()


def test_tokens_of_different_weight_train_no_output_layer(one_pass):
    model, (ids, labels) = frozen("plain", torch.float32), batch()
    model.get_output_embeddings().requires_grad_()
    found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    weights = torch.linspace(0, 1, found.numel()).view_as(found)
    with pytest.raises(NotImplementedError):
        (found * weights).sum().backward()


def test_trl_has_its_own_loss_back():
    before = trl.trainer.utils._ChunkedLogProbFunction, trl.trainer.utils._use_triton
    with pytest.raises(KeyError), loss_in_one_pass():
        raise KeyError
    assert before == (trl.trainer.utils._ChunkedLogProbFunction, trl.trainer.utils._use_triton)
