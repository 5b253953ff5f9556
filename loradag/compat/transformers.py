"""What transformers knows of a model and does not publish. All of it holds for 5.23."""

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module


def float32_parameters(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps the parameter of a name in float32 in a `model` of `dtype`.

    Why: some architectures name parameters that 16 bits ruin, such as the bias of a router.
    `_get_dtype_plan` returns {pattern of names: dtype}.
    Unnecessary once a loaded model can be asked for the dtype that each parameter should have.
    """
    plan = model._get_dtype_plan(dtype)
    patterns = [pattern.replace("*", ".*") for pattern, kept in plan.items() if kept != dtype]
    return lambda name: any(re.search(pattern, name) for pattern in patterns)


def attention_implementation(model: Any) -> str | None:
    """What computes the attention of `model`: sdpa, eager, …; None: transformers names none.

    Why: with "auto" the choice is transformers', by the model and by what is installed.
    `config._attn_implementation` holds it; `set_attn_implementation` is public, reading it is not.
    Unnecessary once a loaded model can be asked for it.
    """
    name: str | None = model.config.get_text_config()._attn_implementation
    return name


def stored_pieces(model: Any, parameter: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """`value` of a parameter, in the pieces and by the names that checkpoints of `model` have.

    Why: checkpoints have a tensor for each expert, whose layers are one parameter in the model.
    `revert_weight_conversion` is what `save_pretrained` calls; it has no page in the documentation.
    Unnecessary once transformers documents it.
    """
    from transformers.core_model_loading import revert_weight_conversion

    pieces: dict[str, torch.Tensor] = revert_weight_conversion(model, {parameter: value})
    return pieces


def skipped_modules(model: Any, skip: list[str]) -> list[str]:
    """The modules that transformers leaves unquantised: `skip`, the output layer, what is tied.

    Why: what is quantised ahead must be what transformers builds quantised layers for.
    Unnecessary once transformers publishes how a quantizer chooses its layers.
    """
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, list(skip), model._keep_in_fp32_modules, add_default_skips=True
    )
    return sorted(skipped)


def is_quantizable(module: str, skipped: list[str]) -> bool:
    """Whether transformers quantises the module of a name, given the names that it skips."""
    found: bool = should_convert_module(module, skipped)
    return found
