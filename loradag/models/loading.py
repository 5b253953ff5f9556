"""Load what earlier stages wrote: tokenizer, base, quantized base, adapter on top."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.models.device import device
from loradag.models.pinning import weights_folder
from loradag.runtime import Paths

if TYPE_CHECKING:
    import torch


def load_model(folder: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A causal LM in inference mode, from safetensors alone, on the device of this run."""
    from transformers import AutoModelForCausalLM

    from loradag.models.activations import as_noted

    if _quantized_by(folder) == "torchao":
        from loradag.compat.torchao import register

        register()
    loaded = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        device_map={"": device()},
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **options,
    )
    return as_noted(loaded, folder).eval()


def _quantized_by(folder: Path) -> str | None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method: str | None = config.get("quantization_config", {}).get("quant_method")
    return method


def load_base(paths: Paths, dtype: torch.dtype, **options: Any) -> Any:
    return load_model(weights_folder(paths.base), dtype, **options)


def is_quantized(paths: Paths) -> bool:
    """False where `quantize=none`: then `artifacts/quantized` is the base itself, not copied."""
    return (paths.quantized / "config.json").exists()


def load_quantized(paths: Paths, dtype: torch.dtype) -> Any:
    """The frozen base as training sees it, computing in `dtype`."""
    if not is_quantized(paths):
        return load_base(paths, dtype)
    # LLM.int8 would warn at each product that it rounds its inputs, which is what it is for.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    loaded = load_model(paths.quantized, dtype)
    for module in loaded.modules():
        # bitsandbytes' 4-bit layers compute, and dequantise, in the dtype they were saved with
        # unless told.
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = module.weight.quant_state.dtype = dtype
    return loaded


def is_adapter(paths: Paths) -> bool:
    """False where every weight was trained: then `artifacts/adapter` is a whole model."""
    return (paths.adapter / "adapter_config.json").exists()


def load_tuned(paths: Paths, quantized: Any) -> Any:
    """The model as trained: the adapter put on `quantized`, or the whole checkpoint instead."""
    if not is_adapter(paths):
        return load_model(paths.adapter, quantized.dtype)
    from peft import PeftModel

    # peft would lift 16-bit adapters to float32 by itself; what was trained is what is measured.
    return PeftModel.from_pretrained(quantized, paths.adapter, autocast_adapter_dtype=False).eval()
