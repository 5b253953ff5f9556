"""Where the layers of a model are kept for inference: on one device or, if that is small, several.

The map is accelerate's. A layer in the CPU's memory or on disk is moved to the device that computes
when its turn comes, from disk straight out of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.hooks import ModelHook, add_hook_to_module

from loradag.checkpoints.model_files import NOTE, quantized_by
from loradag.checkpoints.safetensors_reader import FLOATS, read_entries
from loradag.models.device import device
from loradag.runtime.process_memory import available_bytes

if TYPE_CHECKING:
    import torch

SPARE = 1.5  # of the weights' bytes: activations, logits, an adapter


def placement(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """Options of `from_pretrained` that place the model of `folder`, in `dtype`, for inference.

    Where the device of this run has no room for it: on all GPUs, then in the CPU's memory, then on
    disk; `from_pretrained` then needs an `offload_folder`, for weights that it converts. A
    quantized model is spread over GPUs alone, and one with rounded activations not at all: their
    layers cannot be moved one by one.
    """
    first = device()
    one_device = {"device_map": {"": first}}
    if SPARE * weight_bytes(folder, dtype) <= free_bytes(first):
        return one_device
    if (folder / NOTE).exists():
        return one_device
    room = _room(first)
    if quantized_by(folder) is None:
        return {"device_map": "auto", "max_memory": room}
    gpus = {place: size for place, size in room.items() if isinstance(place, int)}
    if weight_bytes(folder, dtype) > sum(gpus.values()):
        return one_device
    return {"device_map": "auto", "max_memory": gpus}


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Of the model of `folder` with its floats in `dtype`; of a quantized one as it is stored."""
    entries = read_entries(folder).values()
    if quantized_by(folder) is not None:
        return sum(entry.bytes for entry in entries)
    return sum(
        entry.elements * dtype.itemsize if entry.dtype in FLOATS else entry.bytes
        for entry in entries
    )


def free_bytes(place: str | int) -> int:
    """Free memory of a device. A Mac's GPU takes its own from the machine's."""
    import torch

    if place in ("cpu", "mps"):
        return available_bytes()
    return int(torch.cuda.mem_get_info(place)[0])


def is_offloaded(model: Any) -> bool:
    """Whether layers of `model` are kept elsewhere than where they are computed."""
    places = set(getattr(model, "hf_device_map", {}).values())
    return "disk" in places or ("cpu" in places and len(places) > 1)


def input_device(model: Any) -> torch.device:
    """The device for a model's inputs; accelerate takes those of an offloaded one from anywhere."""
    import torch

    given: torch.device = torch.device("cpu") if model.device.type == "meta" else model.device
    return given


def change_weight(module: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let `module` compute with `change(weight)`, in place; if it is offloaded, each time anew."""
    if module.weight.is_meta:
        add_hook_to_module(module, _Changing(change), append=True)
    else:
        module.weight.data.copy_(change(module.weight.data))


class _Changing(ModelHook):
    """Runs after accelerate's own hook, which has just read the weight."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.change = change

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        module.weight.data.copy_(self.change(module.weight.data))
        return args, kwargs


def _room(first: str) -> dict[int | str, int]:
    """Bytes for weights on every device that can keep layers."""
    import torch

    places: list[int | str] = [first]
    if first == "cuda":
        places = [*range(torch.cuda.device_count()), "cpu"]
    return {place: int(free_bytes(place) / SPARE) for place in places}
