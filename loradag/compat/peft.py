"""What peft offers as an experiment, or keeps to itself. All of it holds for peft 0.21."""

import re
from pathlib import Path
from typing import Any

import torch

from loradag.config.problems import LoradagError


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


def names_of_experts() -> set[str]:
    """What peft takes for the names of experts' matrices in old checkpoints: `gate_proj`, `w1`, ….

    Why: in a model with experts peft adapts their parameters where such a name is targeted, and
    leaves out a linear layer that has it, such as that of a layer without experts.
    `peft.utils.transformers_weight_conversion` says what it maps in a private dictionary.
    Unnecessary once peft adapts the linear layer as well.
    """
    from peft.utils.transformers_weight_conversion import _MOE_TARGET_MODULE_MAPPING

    return {name for mapping in _MOE_TARGET_MODULE_MAPPING.values() for name in mapping}


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


def load_on_offloaded(model: Any, folder: Path, **options: Any) -> Any:
    """A `PeftModel` of the adapter in `folder` on a base that accelerate has offloaded in part.

    Why: `PeftModel.from_pretrained` spreads such a base anew, and for that writes all its weights
    once more, below the working folder (`_update_offload`); without that it leaves the adapter on
    the device `meta`, where its offloaded layer is. Each layer's device is in accelerate's hook.
    Unnecessary once peft loads an adapter on a base as it is placed.

    Raises:
        LoradagError: the adapter has more than the matrices A and B, or adapts experts: peft adds
            their update to weights that are not on the device yet.
    """
    from peft import PeftConfig, PeftModel, load_peft_weights
    from peft.tuners.tuners_utils import BaseTunerLayer

    if parameters := PeftConfig.from_pretrained(str(folder)).target_parameters:
        raise LoradagError(
            f"the device has no room for the model, whose adapter adapts {min(parameters)}. That "
            "cannot be put on a model that is offloaded in part. Take a device with more memory, "
            "or name layers without experts in adapter.target_modules, such as [q_proj,v_proj]."
        )
    del model.hf_device_map
    tuned = PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=True, **options)
    saved = load_peft_weights(str(folder), device="cpu")
    named = {re.sub(r"(\.lora_(?:embedding_)?[AB])", r"\1.default", k): v for k, v in saved.items()}
    found = tuned.load_state_dict(named, strict=False, assign=True)
    if found.unexpected_keys:
        raise LoradagError(
            f"the device has no room for the model, whose adapter has {found.unexpected_keys[0]}. "
            "That cannot be put on a model that is offloaded in part. Take adapter=lora without "
            "adapter.modules_to_save and adapter.bias, or quantize=nf4."
        )
    for layer in tuned.modules():
        if isinstance(layer, BaseTunerLayer):
            place = layer.get_base_layer()._hf_hook.execution_device
            for name in layer.adapter_layer_names:
                getattr(layer, name).to(place)
    return tuned
