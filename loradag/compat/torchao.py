"""What torchao, and transformers' loading of its checkpoints, lack for a LoRA on top of them.

All of it holds for torchao 0.18 with transformers 5.23. Neither documents its names.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchao.core.config import AOBaseConfig
from torchao.prototype.awq.core import AWQObserver
from torchao.prototype.safetensors.safetensors_support import (
    flatten_tensor_state_dict,
    unflatten_tensor_state_dict,
)
from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor
from torchao.quantization.quantize_.common import _choose_quant_func_and_quantize_tensor
from torchao.quantization.transform_module import register_quantize_module_handler
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING
from transformers.quantizers.quantizer_torchao import TorchAoHfQuantizer


def activation_options(granularity: Any, mapping_type: Any) -> Any:
    """What `Int8Tensor.from_hp` takes as `act_quant_kwargs`: how inputs are rounded to int8.

    Why: the class of this argument is in no public module.
    Unnecessary once `torchao.quantization` exports it, next to `Int8Tensor`.
    """
    from torchao.quantization.quantize_.workflows import QuantizeTensorToInt8Kwargs

    return QuantizeTensorToInt8Kwargs(granularity=granularity, mapping_type=mapping_type)


class _Quantizer(TorchAoHfQuantizer):
    @property
    def serialized_names(self) -> dict[str, list[str]]:
        static = ("act_quant_scale", "act_quant_zero_point")
        return {
            name: [*names, *(f"_{name}_{suffix}" for suffix in static)]
            for name, names in super().serialized_names.items()
        }

    @property
    def is_trainable(self) -> bool:
        return True


def register() -> None:
    """Make transformers load static activation scales, and let adapters train on any scheme.

    Why: transformers leaves `act_quant_scale` and `act_quant_zero_point` out of the names that it
    loads, and takes only classes with an 8 in their names for trainable, though every frozen
    weight is. `register_quantizer`, the public way, refuses a name that is taken.
    Unnecessary once `TorchAoHfQuantizer.serialized_names` has all of torchao's optional tensors.
    """
    AUTO_QUANTIZER_MAPPING["torchao"] = _Quantizer


@dataclass
class _Rounding(AOBaseConfig):
    """A torchao config that rounds a weight by any function."""

    round_weight: Callable[[torch.Tensor], torch.Tensor]


@register_quantize_module_handler(_Rounding)  # type: ignore[untyped-decorator]
def _round(module: Any, config: _Rounding) -> Any:
    module.weight = torch.nn.Parameter(config.round_weight(module.weight), False)
    return module


def search_input_scales(
    weight: torch.Tensor,
    inputs: Sequence[torch.Tensor],
    round_weight: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """AWQ's scales (in,) of the columns of a weight (out, in): x·wᵀ = (x / scales)·(w·scales)ᵀ.

    Args:
        inputs: (…, tokens, in) each.
        round_weight: what storing makes of a weight.

    Why: torchao's search for them is in `prototype` only.
    Unnecessary once torchao moves it out of there.
    """
    observer = AWQObserver(weight, None, _Rounding(round_weight))
    for values in inputs:
        observer(values, None)
    scales: torch.Tensor = observer.calculate_qparams()
    return scales


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Make the quantised layers of a loaded `model` dequantise to `dtype` and multiply in it.

    Why: torchao's tensors dequantise to the dtype that they were quantised from, and `.to(dtype)`
    rounds their scales; its linear layer of int8 activations passes no gradient to its inputs, so
    adapters of the layers below would train on nothing.
    Unnecessary once `from_pretrained(dtype=…)` sets the dtype of quantised tensors, and torchao's
    integer product has a backward pass.
    """
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, IntxUnpackedToInt8Tensor | Int8Tensor):
            module.weight = torch.nn.Parameter(_in_dtype(weight, dtype), False)
            if getattr(weight, "act_quant_kwargs", None) is not None:
                module.__class__ = IntegerLinear


def flatten_tensor(
    name: str, tensor: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A torchao or plain tensor as saved tensors, and its metadata under `name`.

    Why: it is the form that transformers saves and loads, and torchao has it in `prototype` only.
    Unnecessary once torchao moves it out of there.
    """
    stored, metadata = flatten_tensor_state_dict({name: tensor})
    return stored, {name: metadata[name]}


def unflatten_tensor(name: str, stored: dict[str, torch.Tensor], metadata: dict[str, str]) -> Any:
    """The inverse of `flatten_tensor`, from the metadata of a checkpoint."""
    described = {name: metadata[name], "tensor_names": json.dumps([name])}
    return unflatten_tensor_state_dict(stored, described)[0][name]


class IntegerLinear(torch.nn.Linear):
    """y = x·Wᵀ + b of activations and weights rounded to int8; ∂y/∂x as if nothing were rounded."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        # Static scales are of three dimensions, as the inputs of a language model's layers are.
        product: torch.Tensor = _StraightThrough.apply(
            input.reshape(1, -1, self.in_features), self.weight
        )
        product = product.reshape(*input.shape[:-1], self.out_features)
        return product if self.bias is None else product + self.bias


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: Any) -> torch.Tensor:
        ctx.quantized = weight
        if inputs.device.type != "cpu":
            return torch.nn.functional.linear(inputs, weight)
        # The same numbers from floats: torch's integer product is a plain loop on many CPUs, where
        # it made a forward pass some twenty times slower.
        dtype = inputs.dtype
        if weight.act_pre_scale is not None:
            inputs = inputs * weight.act_pre_scale
        rounded = _choose_quant_func_and_quantize_tensor(
            inputs,
            weight.act_quant_kwargs,
            scale=weight.act_quant_scale,
            zero_point=weight.act_quant_zero_point,
        )
        return torch.nn.functional.linear(rounded.dequantize(dtype), weight.dequantize(dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        back = gradient @ ctx.quantized.dequantize().to(gradient.dtype)
        pre_scale = ctx.quantized.act_pre_scale
        return (back if pre_scale is None else (back * pre_scale).to(back)), None


def _in_dtype(weight: Any, dtype: torch.dtype) -> Any:
    """The same codes and scales; `.to(dtype)` would round the scales as well."""
    if isinstance(weight, IntxUnpackedToInt8Tensor):
        return IntxUnpackedToInt8Tensor(
            weight.qdata,
            weight.scale,
            weight.zero_point,
            weight.target_dtype,
            weight.block_size,
            dtype,
            weight.activation_quantization,
        )
    pre_scale = weight.act_pre_scale
    if pre_scale is not None and weight.act_quant_kwargs is None:
        pre_scale = pre_scale.to(dtype)
    return Int8Tensor(
        weight.qdata,
        weight.scale,
        weight.block_size,
        dtype,
        zero_point=weight.zero_point,
        act_quant_scale=weight.act_quant_scale,
        act_quant_zero_point=weight.act_quant_zero_point,
        # Inputs are rounded to codes after it, or else multiplied in `dtype`.
        act_pre_scale=pre_scale,
        act_quant_kwargs=weight.act_quant_kwargs,
        reduce_range=weight.reduce_range,
    )
