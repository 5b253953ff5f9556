"""Load what earlier stages wrote: tokenizer, base, quantized base, adapter on top."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.model_files import quantized_by
from loradag.config.problems import LoradagError
from loradag.models.device import device
from loradag.models.pinning import weights_folder
from loradag.models.placement import is_offloaded, placement
from loradag.models.precision import cast_parameters, compute_in, verify_dtype
from loradag.runtime import Paths

if TYPE_CHECKING:
    import torch


def load_model(
    folder: Path,
    dtype: torch.dtype,
    attention: str = "auto",
    *,
    to_train: bool = False,
    **options: Any,
) -> Any:
    """A causal LM in inference mode, from safetensors alone, on the device of this run.

    Every float parameter computes in `dtype`, whatever dtype the checkpoint stores it in. If the
    device is too small for a model that is not `to_train`, its layers are spread (`placement`).

    Args:
        folder: the checkpoint.
        dtype: to compute in.
        attention: transformers' name of an implementation; "auto" is its own choice.
        to_train: whether gradients will be computed.
        options: of `from_pretrained`.

    Raises:
        LoradagError: the attention implementation is not available here.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from loradag.models.activations import as_noted

    if quantized_by(folder) == "torchao":
        from loradag.compat.torchao import register

        register()
    if attention != "auto":
        options["attn_implementation"] = attention
    options |= {"device_map": {"": device()}} if to_train else placement(folder, dtype)
    scratch = tempfile.mkdtemp(prefix="offload-") if options["device_map"] == "auto" else None
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            offload_folder=scratch,
            **options,
        )
    except (ImportError, ValueError) as error:
        if attention == "auto":
            raise
        raise LoradagError(
            f"train.attention = {attention!r}: {str(error).splitlines()[0]} Set "
            "train.attention=auto."
        ) from error
    if getattr(loaded, "quantization_method", None) == "bitnet":
        # Its layers compile functions of three operations: that takes a C++ compiler and half a
        # minute.
        torch.compiler.set_stance("force_eager")
    if scratch:
        weakref.finalize(loaded, shutil.rmtree, scratch, ignore_errors=True)
    compute_in(loaded, folder, dtype)
    verify_dtype(loaded, dtype)
    return as_noted(loaded, folder).eval()


def load_base(paths: Paths, dtype: torch.dtype, **options: Any) -> Any:
    """The base; `options` are those of `load_model`."""
    return load_model(weights_folder(paths.base), dtype, **options)


def is_quantized(paths: Paths) -> bool:
    """False where `quantize=none`: then `artifacts/quantized` is the base itself, not copied."""
    return (paths.quantized / "config.json").exists()


def load_quantized(paths: Paths, dtype: torch.dtype, **options: Any) -> Any:
    """The frozen base as training sees it, computing in `dtype`; `options` as in `load_model`."""
    if not is_quantized(paths):
        return load_base(paths, dtype, **options)
    return load_model(paths.quantized, dtype, **options)


def is_adapter(paths: Paths) -> bool:
    """False where every weight was trained: then `artifacts/adapter` is a full model."""
    return (paths.adapter / "adapter_config.json").exists()


def load_tuned(paths: Paths, quantized: Any) -> Any:
    """The model as trained: the adapter put on `quantized`, or the full checkpoint instead.

    The adapter computes in the dtype of `quantized`, as it did in training, where each product was
    in that dtype and float32 was for the optimizer.
    """
    dtype = quantized.dtype
    if not is_adapter(paths):
        return load_model(paths.adapter, dtype)
    from peft import PeftModel

    from loradag.compat.peft import load_on_offloaded

    load = load_on_offloaded if is_offloaded(quantized) else PeftModel.from_pretrained
    tuned = load(quantized, paths.adapter, autocast_adapter_dtype=False)
    cast_parameters(tuned, dtype)
    verify_dtype(tuned, dtype)
    return tuned.eval()
