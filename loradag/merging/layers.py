"""Layer by layer: what an adapted layer computes with its update unmerged, and merged.

The next-token distribution hides a layer that was left out or scaled wrongly, where its update is
small; the layer's own output does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loradag.models.placement import input_device

if TYPE_CHECKING:
    import torch

INPUTS = 16
ROUNDING = 1e-5  # of float32 sums


def layer_outputs(tuned: Any) -> dict[str, torch.Tensor]:
    """What each adapted layer of a `PeftModel` makes of the same random inputs, by its name.

    Experts and their router are adapted as parameters: these are named instead of a layer.
    """
    from peft.tuners.lora import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = tuned.get_base_model()
    outputs = {}
    for name, module in base.named_modules():
        if isinstance(module, ParamWrapper):
            holder = name.replace(".base_layer", "")
            weight = module.get_param()
            update = module.get_delta_weight(*module.active_adapters)
            outputs[f"{holder}.{module.parameter_name}"] = _product(weight) + _product(update)
        elif isinstance(module, BaseTunerLayer):
            outputs[name] = _output(base, name)
    return outputs


def largest_error(merged: Any, outputs: dict[str, torch.Tensor]) -> tuple[str, float]:
    """The layer of the merged model that differs most from `outputs`, and ‖y' − y‖ / ‖y‖ of it."""
    parameters = dict(merged.named_parameters())
    errors = {}
    for name, output in outputs.items():
        found = _product(parameters[name]) if name in parameters else _output(merged, name)
        errors[name] = float((found - output).norm() / output.norm())
    name = max(errors, key=lambda name: errors[name])
    return name, errors[name]


def rounding_bound(stored: list[torch.dtype], compute: torch.dtype) -> float:
    """The most that rounding explains of `largest_error`.

    Rounding changes a weight by at most half an epsilon of the coarsest stored dtype, and random
    signs make sums of it smaller still: one epsilon is a bound to spare. Computing in 16 bits adds
    its own.
    """
    import torch

    coarsest = max(torch.finfo(dtype).eps for dtype in stored)
    return max(coarsest, 4 * torch.finfo(compute).eps, ROUNDING)


def _product(weight: torch.Tensor) -> torch.Tensor:
    """The products of random inputs and the matrices (…, out, in)."""
    import torch

    noise = torch.randn(INPUTS, weight.shape[-1], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return (noise.to(weight) @ weight.mT).float().cpu()


def _output(model: Any, name: str) -> torch.Tensor:
    import torch

    layer = model.get_submodule(name)
    inner = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    weight = inner.weight
    place = (
        input_device(model) if weight.is_meta else weight.device
    )  # an offloaded layer is on its way
    if isinstance(inner, torch.nn.Embedding):
        inputs = torch.arange(min(INPUTS, weight.shape[0]), device=place)
    else:
        # GPT-2's Conv1D stores (in, out) and has no in_features.
        width = getattr(inner, "in_features", weight.shape[0])
        noise = torch.randn(INPUTS, width, generator=torch.Generator().manual_seed(0))
        inputs = noise.to(place, weight.dtype)
    with torch.inference_mode():
        return layer(inputs).float().cpu()  # type: ignore[no-any-return]
