"""A quantised checkpoint back to floats, a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.checkpoints.safetensors_reader import read_entries, read_metadata, read_tensor
from loradag.quantization.schemes import decode

if TYPE_CHECKING:
    import torch


def dequantized(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (parameter name, float32 weight) of a folder that `quantize` wrote, sorted by name.

    Parameters that were not quantised come as they are, lifted to float32. One is in memory at a
    time. Names and shapes are those of the base.
    """
    entries, metadata = read_entries(folder), read_metadata(folder)
    for name, keys in _keys_by_parameter(list(entries), metadata).items():
        stored = {key: read_tensor(folder / entries[key].file, key) for key in keys}
        yield name, decode(name, stored, metadata)


def _keys_by_parameter(keys: list[str], metadata: dict[str, str]) -> dict[str, list[str]]:
    """The saved tensors of each parameter, in the form of its library."""
    if "tensor_names" in metadata:
        return {
            name: _keys_of_torchao(name, json.loads(metadata[name]))
            for name in sorted(json.loads(metadata["tensor_names"]))
        }
    owned: dict[str, list[str]] = {}
    for key in keys:
        if key.endswith((".SCB", ".weight_format")):  # int8: next to the weight
            owner = key.rpartition(".")[0] + ".weight"
        else:  # nf4, fp4: below the weight
            owner = key[: key.index(".weight.") + len(".weight")] if ".weight." in key else key
        owned.setdefault(owner, []).append(key)
    return dict(sorted(owned.items()))


def _keys_of_torchao(name: str, described: dict[str, list[str]]) -> list[str]:
    module, _, parameter = name.rpartition(".")
    parts = described.get("_tensor_data_names")
    return [name] if parts is None else [f"{module}._{parameter}_{part}" for part in parts]
