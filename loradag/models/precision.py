"""The dtype that a model computes in, of every parameter and not of an option."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.model_files import quantized_by
from loradag.config.problems import LoradagError

if TYPE_CHECKING:
    import torch


def compute_in(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Make every float parameter of the `model` that was loaded from `folder` compute in `dtype`.

    `from_pretrained(dtype=…)` reaches only what it loads unquantised: in a bitsandbytes checkpoint
    embedding, norms and output layer keep the dtype they are stored in, and quantised weights
    dequantise to the one they were quantised from. Codes and their scales stay as they are.
    """
    method = quantized_by(folder)
    if method == "bitsandbytes":
        from loradag.compat.bitsandbytes import compute_in as compute_bitsandbytes_in

        compute_bitsandbytes_in(model, dtype)
    if method == "torchao":
        from loradag.compat.torchao import compute_in as compute_torchao_in

        compute_torchao_in(model, dtype)
    cast_parameters(model, dtype)


def cast_parameters(model: Any, dtype: torch.dtype) -> None:
    """Cast what `verify_dtype` would refuse, in place."""
    for _, parameter in _computing(model, dtype):
        if parameter.dtype != dtype and not hasattr(parameter, "quant_state"):
            parameter.data = parameter.data.to(dtype)


def verify_dtype(model: Any, dtype: torch.dtype, autocast: torch.dtype | None = None) -> str:
    """The name of `dtype`, checked against every float parameter of `model`.

    Args:
        model: a transformers model, or a peft one around it.
        dtype: what the model should compute in.
        autocast: what the trainer casts float32 parameters to in each product; None: to nothing.

    Raises:
        LoradagError: a parameter computes in another dtype. Parameters that the architecture itself
            keeps in float32, such as the bias of a router, are excepted.
    """
    import torch

    for name, parameter in _computing(model, dtype):
        actual = getattr(parameter, "quant_state", parameter).dtype  # 4 bits: what they decode to
        if actual == torch.float32 and autocast is not None:
            actual = autocast
        if actual != dtype:
            raise LoradagError(
                f"{name} computes in {_name(actual)}, not in the model's dtype {_name(dtype)}. "
                "Please report it, with the model and its quantize section."
            )
    return _name(dtype)


def _computing(model: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters that products should take in `dtype`.

    None of 8-bit codes, which decode to the dtype of the other factor, and none that the
    architecture keeps in float32.
    """
    from loradag.compat.transformers import float32_parameters

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    in_float32 = float32_parameters(base, dtype)
    for name, parameter in model.named_parameters():
        decodes = parameter.is_floating_point() or hasattr(parameter, "quant_state")
        if decodes and not in_float32(name):
            yield name, parameter


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
