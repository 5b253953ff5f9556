"""What `adapter` and `train.method` make trainable, and the form it is saved in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.model_files import PIN
from loradag.config.adapter import Adapter
from loradag.config.train import Train
from loradag.models.loading import load_base, load_quantized
from loradag.models.pinning import weights_folder
from loradag.runtime import Paths
from loradag.training import bitnet, qat
from loradag.training.lora import add_adapter, save_adapter
from loradag.training.quantized_lora import quantize_adapter, round_adapter

if TYPE_CHECKING:
    import torch


def load_trainable(
    paths: Paths, adapter: Adapter, train: Train, seed: int, dtype: torch.dtype, state: Path
) -> Any:
    """The model to train: an adapter on the frozen base, or all weights in float32."""
    import torch
    from transformers import set_seed

    set_seed(seed)
    weights = weights_folder(paths.base)
    if train.method == "bitnet":
        return bitnet.load_masters(weights)
    if train.method == "qat":
        base = qat.fake_quantize(load_base(paths, torch.float32), train)
        if adapter.variant == "none":
            return base
        return qat.check_adapted_layers(add_adapter(base, adapter, weights, state, qat.LAYERS))
    if adapter.variant == "none":
        return load_base(paths, torch.float32)
    tuned = add_adapter(load_quantized(paths, dtype), adapter, weights, state)
    if adapter.variant == "quantized_lora":
        return quantize_adapter(tuned, adapter)
    return tuned


def save_trained(
    model: Any, paths: Paths, adapter: Adapter, train: Train, folder: Path, state: Path
) -> None:
    """Write the adapter, or the whole checkpoint, as safetensors."""
    model.config.use_cache = True  # the trainer had switched it off, and checkpoints carry it
    if train.method == "bitnet":
        bitnet.save(model, folder)
    elif train.method == "qat":
        qat.save(model, train, folder)
    elif adapter.variant == "none":
        model.save_pretrained(folder)
    else:
        if adapter.variant == "quantized_lora":
            round_adapter(model)
        pin = json.loads((paths.base / PIN).read_text(encoding="utf-8"))
        save_adapter(model, adapter, folder, state, str(pin["id"] or pin["path"] or "random"))


def count_parameters(model: Any) -> tuple[int, int]:
    """How many parameters are trained, and how many there are."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, model.num_parameters()
