"""What `adapter` and `train.method` make trainable, and the form it is saved in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.schema import Adapter, Train
from stages.adapters.lora import add_adapter, save_adapter
from stages.models.loading import load_base, load_quantized
from stages.models.sources import PIN, weights_folder
from stages.runtime import Paths

if TYPE_CHECKING:
    import torch


def load_trainable(
    paths: Paths, adapter: Adapter, train: Train, seed: int, dtype: torch.dtype, state: Path
) -> Any:
    """The model to train: an adapter on the frozen base, or all weights in float32."""
    import torch
    from transformers import set_seed

    set_seed(seed)
    if adapter.variant == "none":
        return load_base(paths, torch.float32)
    base = load_quantized(paths, dtype)
    return add_adapter(base, adapter, weights_folder(paths.base), state)


def save_trained(
    model: Any, paths: Paths, adapter: Adapter, train: Train, folder: Path, state: Path
) -> None:
    """Write the adapter, or the whole checkpoint, as safetensors."""
    if adapter.variant == "none":
        model.save_pretrained(folder)
        return
    pin = json.loads((paths.base / PIN).read_text(encoding="utf-8"))
    save_adapter(model, adapter, folder, state, str(pin["id"] or pin["path"] or "random"))
