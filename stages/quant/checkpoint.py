"""A base checkpoint into a quantised one, a tensor at a time.

The full-precision model is never held: of the base, one tensor is in memory; of the result, what
is written so far. What is saved is what transformers' own `save_pretrained` writes, so
`from_pretrained` loads it without quantising again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.schema import LoradagError
from stages.quant import schemes
from stages.quant.dequantize import decode
from stages.quant.errors import Error, compare
from stages.quant.tensors import tensor_files, tensors
from stages.runtime import device

if TYPE_CHECKING:
    import torch

    from conf.schema import Quantize


def quantize_checkpoint(base: Path, folder: Path, options: Quantize) -> dict[str, Any]:
    """Quantise the linear layers of `base` into `folder`; return what it cost, for the report.

    Raises:
        LoradagError: no layer to quantise, or weights that are not finite.
    """
    import torch
    from huggingface_hub import save_torch_state_dict
    from rich.progress import track
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    linear, skipped = linear_weights(config, options.skip_modules)
    saved: dict[str, torch.Tensor] = {}
    layers: list[dict[str, Any]] = []
    total, bits, parameters = Error(), 0, 0
    for name, tensor in track(tensors(base), "quantize", total=len(tensor_files(base))):
        parameters += tensor.numel()
        if not torch.isfinite(tensor).all():
            raise LoradagError(
                f"{name}: holds weights that are NaN or infinite, so the base is broken. Fetch "
                "another one."
            )
        if name not in linear:
            saved[name] = tensor.clone()
            continue
        weight = tensor.to(device(), torch.float32)
        stored = schemes.encode(name, weight, options)
        error = compare(weight, decode(name, stored))
        layers.append({"name": name.removesuffix(".weight"), **error.as_dict()})
        total += error
        bits += sum(8 * value.nbytes for value in stored.values())
        saved |= {key: value.cpu() for key, value in stored.items()}
    if not layers:
        raise LoradagError(
            f"quantize.skip_modules = {options.skip_modules}: leaves no linear layer to quantise. "
            "Name fewer modules, or take quantize=none."
        )
    save_torch_state_dict(saved, folder, metadata={"format": "pt"})
    config.quantization_config = schemes.config(options, skipped).to_dict()
    config.save_pretrained(folder)
    if (base / "generation_config.json").exists():
        GenerationConfig.from_pretrained(base).save_pretrained(folder)
    return {
        "parameters": parameters,
        "quantized_parameters": total.count,
        "bits_per_weight": bits / total.count,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "bytes_full": 2 * parameters,
        "layers": layers,
        **total.as_dict(),
    }


def linear_weights(config: Any, skip_modules: list[str]) -> tuple[set[str], list[str]]:
    """Names of the weights to quantise, and of the modules to skip, as transformers chooses them.

    Those are the weights of every linear layer but the output layer, what is tied to it, and
    `skip_modules`.

    Raises:
        LoradagError: a name in `skip_modules` that no module has.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    for skip in skip_modules:
        if all(should_convert_module(name, [skip]) for name in names):
            raise LoradagError(
                f"quantize.skip_modules: no linear layer is called {skip!r}. They end in "
                f"{', '.join(sorted({re.split(r'[.]', name)[-1] for name in names}))}."
            )
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, list(skip_modules), model._keep_in_fp32_modules, add_default_skips=True
    )
    linear = {f"{name}.weight" for name in names if should_convert_module(name, skipped)}
    return linear, sorted(skipped)


def measure_unquantized(base: Path) -> dict[str, Any]:
    """What the base costs as it is, for the report of `quantize=none`."""
    stored, parameters = 0, 0
    for _, tensor in tensors(base):
        stored += tensor.nbytes
        parameters += tensor.numel()
    return {
        "parameters": parameters,
        "quantized_parameters": 0,
        "bits_per_weight": 8 * stored / parameters,
        "bytes": stored,
        "bytes_full": 2 * parameters,
        "rmse": 0.0,
        "layers": [],
    }
