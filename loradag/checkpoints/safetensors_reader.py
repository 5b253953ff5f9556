"""Read the safetensors files that transformers would load a model folder from.

Those are `model.safetensors`, or else the files that its index names: a folder may have the same
weights once more under another name, such as `consolidated.safetensors`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.config.problems import LoradagError

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# safetensors' names: torch's name, bytes an element.
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1),
    "U8": ("uint8", 1), "BOOL": ("bool", 1), "F8_E4M3": ("float8_e4m3fn", 1),
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Entry:
    """A stored tensor: the file that it is in, its dtype by safetensors' name, its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return self.elements * DTYPES[self.dtype][1]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path) -> list[str]:
    """The names of the files that the model of `folder` is loaded from; none: it has no weights.

    Raises:
        LoradagError: the index names a file that is missing.
    """
    if (folder / SINGLE).is_file():
        return [SINGLE]
    if not (folder / INDEX).is_file():
        return []
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    files = sorted(set(index["weight_map"].values()))
    for file in files:
        if not (folder / file).is_file():
            raise LoradagError(
                f"{folder / file}: is missing, though {INDEX} names it. Fetch the model again."
            )
    return files


def read_entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the model of `folder`, sorted by name, from the headers of its files.

    Raises:
        LoradagError: there are no weights, or one of their files is missing.
    """
    from safetensors import safe_open

    files = weight_files(folder)
    if not files:
        raise LoradagError(f"{folder / SINGLE}: is missing, and so is {INDEX}.")
    found: dict[str, Entry] = {}
    for file in files:
        with safe_open(folder / file, "pt") as shard:
            for name in shard.keys():  # noqa: SIM118
                part = shard.get_slice(name)
                found[name] = Entry(file, part.get_dtype(), tuple(part.get_shape()))
    return dict(sorted(found.items()))


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the model of `folder` one by one, sorted by name."""
    for name, entry in read_entries(folder).items():
        yield name, read_tensor(folder / entry.file, name)


def read_tensor(file: Path, name: str) -> torch.Tensor:
    """One tensor of a file.

    Each read maps the file anew: the pages of a mapping count as this process's memory for as long
    as it lives.
    """
    from safetensors import safe_open

    with safe_open(file, "pt") as shard:
        tensor: torch.Tensor = shard.get_tensor(name)
        return tensor


def read_metadata(folder: Path) -> dict[str, str]:
    """The metadata of all files of the model of `folder`."""
    from safetensors import safe_open

    found: dict[str, str] = {}
    for file in weight_files(folder):
        with safe_open(folder / file, "pt") as shard:
            found |= shard.metadata() or {}
    return found


def count_parameters(folder: Path) -> int:
    """Parameters of an unquantized model; tied weights are stored, and counted, once."""
    return sum(entry.elements for entry in read_entries(folder).values())
