"""A quantised checkpoint back to floats, a tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stages.quant.tensors import read_tensor, tensor_files

if TYPE_CHECKING:
    import torch


def decode(name: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """The float32 weight that the saved tensors of the parameter `name` stand for."""
    from stages.quant import bnb

    if len(stored) == 1:
        return stored[name].float()
    return bnb.decode(name, stored)


def dequantized(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (parameter name, float32 weight) of a folder that `quantize` wrote, sorted by name.

    Parameters that were not quantised come as they are, lifted to float32. One is in memory at a
    time. Names and shapes are those of the base.
    """
    files = tensor_files(folder)
    for name, keys in _parameters(list(files)).items():
        yield name, decode(name, {key: read_tensor(files[key], key) for key in keys})


def _parameters(keys: list[str]) -> dict[str, list[str]]:
    """Saved tensors by the parameter that they belong to."""
    owned: dict[str, list[str]] = {}
    for key in keys:
        if key.endswith((".SCB", ".weight_format")):
            owner = key.rpartition(".")[0] + ".weight"
        else:
            owner = key[: key.index(".weight.") + 7] if ".weight." in key else key
        owned.setdefault(owner, []).append(key)
    return dict(sorted(owned.items()))
