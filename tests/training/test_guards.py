"""Trainings that could only waste their hours end with the reason."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerState

from loradag.config.problems import LoradagError
from loradag.training.guards import IGNORED, Guards, check_attention, check_labels, check_optimizer
from tests.conftest import run_stages
from tests.training.conftest import copied


def test_labels_that_train_nothing_are_refused() -> None:
    with pytest.raises(LoradagError, match="no token is trained"):
        check_labels([[IGNORED, IGNORED]], "completion", 2)
    with pytest.raises(LoradagError, match="EOS is trained in no row"):
        check_labels([[5, 6], [IGNORED, 7]], "completion", 2)
    check_labels([[5, 6], [IGNORED, 2]], "completion", 2)


def test_paged_optimizers_are_refused_where_there_are_none() -> None:
    with pytest.raises(LoradagError, match=r"train\.optimizer = 'paged_adamw_8bit'.*MPS"):
        check_optimizer("paged_adamw_8bit", "mps")
    check_optimizer("adamw_torch", "mps")
    check_optimizer("paged_adamw_8bit", "cuda")


def test_an_attention_without_a_gradient_is_refused(fresh) -> None:
    with pytest.raises(LoradagError, match=r"train\.attention = 'flex_attention'.*on a CPU"):
        check_attention("flex_attention", "cpu")
    check_attention("flex_attention", "cuda")
    check_attention("sdpa", "cpu")


def test_a_learning_rate_that_ruins_the_model_is_refused(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    ruinous = replace(config.train, learning_rate=1e6)
    with pytest.raises(LoradagError, match=r"(?i)step \d.* lower train\.learning_rate"):
        run_stages(paths, replace(config, train=ruinous), "train")
    assert not paths.adapter.exists()


@pytest.mark.parametrize("loss", [math.log(1024) + 0.7, 900.0, math.nan])
def test_a_model_worse_than_a_guess_is_refused(fresh, loss) -> None:
    """A guess over 1,024 tokens has a loss of log 1024; 0.69 more is twice its perplexity."""
    guards, arguments, state = Guards(fresh()), SimpleNamespace(learning_rate=0.1), TrainerState()
    guards.on_evaluate(arguments, state, None, {"eval_loss": math.log(1024) + 0.69}, fresh())
    with pytest.raises(LoradagError, match="the held-out perplexity is"):
        guards.on_evaluate(arguments, state, None, {"eval_loss": loss}, fresh())
    overfitting = Guards(fresh(), limits_held_out=False)  # on a few rows, on purpose
    overfitting.on_evaluate(arguments, state, None, {"eval_loss": loss}, fresh())


def test_an_adapter_that_does_not_change_is_refused(trained, tmp_path) -> None:
    paths, config = copied(trained, tmp_path)
    still = replace(config.train, max_steps=1, warmup_steps=5)  # the first step's rate is 0
    with pytest.raises(LoradagError, match=r"after 1 steps nothing .* has changed.*warmup_steps"):
        run_stages(paths, replace(config, train=still), "train")
    assert not paths.adapter.exists()


def test_a_gradient_of_zero_is_refused(trained, tmp_path, monkeypatch) -> None:
    """As on a layer that passes no gradient to what is trainable."""
    paths, config = copied(trained, tmp_path)

    def detached(model, **options) -> Guards:
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.register_hook(torch.zeros_like)
        return Guards(model, **options)

    monkeypatch.setattr("loradag.training.trainer.Guards", detached)
    with pytest.raises(LoradagError, match=r"the gradient is 0 at step 1.*adapter\.target_modules"):
        run_stages(paths, config, "train")
    assert not paths.adapter.exists()


def test_a_loss_that_is_nan_stops_the_stage(trained, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    paths, config = copied(trained, tmp_path)
    weights = load_file(paths.quantized / "model.safetensors")
    norm = next(name for name in weights if "norm" in name)
    weights[norm] = torch.full_like(weights[norm], float("nan"))
    save_file(weights, paths.quantized / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LoradagError, match=r"the loss is nan at step 1\. Lower"):
        run_stages(paths, config, "train")
    assert not paths.adapter.exists()
