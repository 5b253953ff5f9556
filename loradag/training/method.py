"""What `adapter` and `train.method` make trainable, and the form it is saved in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
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
from loradag.training.quantized_lora import quantize_adapter, save_quantized_adapter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Trainable:
    """A model to train, and how its result is written.

    Attributes:
        model: an adapter on the frozen base, or all weights in float32.
        write: writes the trained model to a folder, as safetensors.
    """

    model: Any
    write: Callable[[Any, Path], None]

    def save(self, folder: Path) -> None:
        """Write the adapter, or the full checkpoint, as safetensors."""
        self.model.config.use_cache = True  # the trainer switched it off; checkpoints record it
        self.write(self.model, folder)

    def set_trained(self, values: Mapping[str, Any]) -> None:
        """Give each trainable parameter its value of that name."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = values[name]

    def count_parameters(self) -> tuple[int, int]:
        """How many parameters are trained, and how many there are."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        return trained, self.model.num_parameters()


def load_trainable(
    paths: Paths, adapter: Adapter, train: Train, seed: int, dtype: torch.dtype, state: Path
) -> Trainable:
    """The model to train, from the stage's inputs.

    Args:
        state: folder for what must survive an interruption, see `add_adapter`.
    """
    import torch
    from transformers import set_seed

    set_seed(seed)
    weights = weights_folder(paths.base)
    options: dict[str, Any] = {"attention": train.attention, "to_train": True}
    if train.method == "bitnet":
        return Trainable(bitnet.load_masters(weights, train.attention), bitnet.save)
    if train.method == "qat":
        model = qat.fake_quantize(load_base(paths, torch.float32, **options), train)
        if adapter.variant != "none":
            tuned = add_adapter(model, adapter, weights, state, qat.LAYERS)
            model = qat.check_adapted_layers(tuned)
        return Trainable(model, partial(qat.save, train=train))
    if adapter.variant == "none":
        model = load_base(paths, torch.float32, **options)
        return Trainable(model, lambda m, at: m.save_pretrained(at))
    tuned = add_adapter(load_quantized(paths, dtype, **options), adapter, weights, state)
    pin = json.loads((paths.base / PIN).read_text(encoding="utf-8"))
    base = str(pin["id"] or pin["path"] or "random")
    if adapter.variant == "quantized_lora":
        tuned = quantize_adapter(tuned, adapter)
        return Trainable(tuned, partial(save_quantized_adapter, state=state, base=base))
    return Trainable(tuned, partial(save_adapter, state=state, base=base))
