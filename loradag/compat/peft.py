"""What peft offers as an experiment, or keeps to itself. All of it holds for peft 0.21."""

from typing import Any

import torch


def register_layers(config: Any, layers: dict[type, type]) -> None:
    """Let `config`, a `LoraConfig`, adapt a layer of each class by the class that `layers` names.

    Why: peft has no layer of its own for torchao's fake-quantised linear layers.
    `_register_custom_module` is documented as experimental; its mapping is not saved.
    Unnecessary once peft publishes it.
    """
    config._register_custom_module(layers)


def is_targeted(config: Any, module: str) -> bool:
    """Whether `config`, a `LoraConfig` with names or a pattern, adapts the module of a name.

    Why: what a runtime cannot adapt must be known before the training.
    `peft.tuners.tuners_utils.check_target_module_exists` has no documentation.
    Unnecessary once peft tells which modules a configuration adapts, before it adapts them.
    """
    from peft.tuners.tuners_utils import check_target_module_exists

    return bool(check_target_module_exists(config, module))


def dequantized_weight(layer: torch.nn.Module) -> torch.Tensor:
    """The weight (out, in) that a base layer computes with, in float32, whatever its scheme.

    Why: a start from the quantisation's error needs it; each scheme stores its codes differently.
    `peft.utils.integrations.dequantize_module_weight` has no documentation.
    Unnecessary once peft's own start from that error runs on any device and is scaled.
    """
    from peft.utils.integrations import dequantize_module_weight

    weight: torch.Tensor = dequantize_module_weight(layer).float()
    return weight


def pattern_value(patterns: dict[str, Any], module: str, default: Any) -> Any:
    """The value of `rank_pattern` or `alpha_pattern` that applies to `module`.

    Why: a merge without peft's model must choose ranks and scales as peft did.
    `peft.utils.other.get_pattern_key` has no documentation.
    Unnecessary once peft can merge a checkpoint without loading it.
    """
    from peft.utils.other import get_pattern_key

    return patterns.get(get_pattern_key(patterns.keys(), module), default)
