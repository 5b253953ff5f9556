"""Safetensors checkpoints read and written a tensor at a time, so that memory holds no shard.

The library's `save_file` wants a whole shard in memory; the format itself does not: a header with
the place of every tensor, then their bytes.
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
    "U8": ("uint8", 1), "BOOL": ("bool", 1),
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
PIECE = 2**20  # elements


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies, and its form; `dtype` by safetensors' name."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]


def entries(folder: Path) -> dict[str, Entry]:
    """Every tensor of the checkpoint that transformers would load from `folder`, file by file.

    Raises:
        LoradagError: there is no safetensors checkpoint, or a shard of it is missing.
    """
    from safetensors import safe_open

    index = folder / INDEX
    if index.exists():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = [SINGLE]
    found: dict[str, Entry] = {}
    for file in files:
        if not (folder / file).is_file():
            raise LoradagError(f"{folder / file}: is missing. Bring the model in anew.")
        with safe_open(folder / file, "pt") as shard:
            for name in sorted(shard.keys()):
                part = shard.get_slice(name)
                found[name] = Entry(file, part.get_dtype(), tuple(part.get_shape()))
    return found


def stream(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) one by one, in the order of `entries`.

    Each read maps the file anew: the pages of a mapping count as this process's memory for as long
    as it lives.
    """
    for name, entry in entries(folder).items():
        yield name, read_tensor(folder / entry.file, name)


def read_tensor(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, "pt") as shard:
        return shard.get_tensor(name)  # type: ignore[no-any-return]


def _finite(tensor: torch.Tensor) -> bool:
    """Whether all values are; piece by piece, since the test makes tensors of its input's size."""
    return all(bool(piece.isfinite().all()) for piece in tensor.view(-1).split(PIECE))


class ShardWriter:
    """Writes the tensors of `layout`, in any order, to the files which it names.

    Bytes depend on layout and values alone. As a context it checks at its end that every tensor
    was written, and adds the index where there are several files.
    """

    def __init__(self, folder: Path, layout: dict[str, Entry]) -> None:
        self.folder = folder
        self.layout = layout
        self.missing = set(layout)
        self.places: dict[str, int] = {}
        for file in sorted({entry.file for entry in layout.values()}):
            self._start(file)

    def _start(self, file: str) -> None:
        # Wide elements first, as the library does: then every tensor is aligned.
        inside = sorted(
            ((name, entry) for name, entry in self.layout.items() if entry.file == file),
            key=lambda item: (-DTYPES[item[1].dtype][1], item[0]),
        )
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, entry in inside:
            begin, end = end, end + entry.bytes
            header[name] = {
                "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begin, end],
            }  # fmt: skip
            self.places[name] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        for name, _ in inside:
            self.places[name] += 8 + len(text)
        with (self.folder / file).open("wb") as shard:
            shard.write(len(text).to_bytes(8, "little") + text)
            shard.truncate(8 + len(text) + end)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Store `tensor`, cast once to the dtype that the layout has for it.

        Raises:
            LoradagError: a value does not fit the dtype, or is not a number.
        """
        import torch

        entry = self.layout[name]
        if tuple(tensor.shape) != entry.shape:
            raise LoradagError(f"{name}: has shape {tuple(tensor.shape)}, not {entry.shape}.")
        stored = tensor.to(getattr(torch, DTYPES[entry.dtype][0])).contiguous()
        if entry.dtype in FLOATS and not _finite(stored):
            raise LoradagError(
                f"{name}: the merged weights are not finite numbers of dtype {entry.dtype}. "
                "Set merge.dtype=float32, or train with a lower train.learning_rate."
            )
        with (self.folder / entry.file).open("r+b") as shard:
            shard.seek(self.places[name])
            shard.write(stored.reshape(-1).view(torch.uint8).numpy().data)
        self.missing.discard(name)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self.missing:
            raise LoradagError(f"the base holds no {', '.join(sorted(self.missing)[:3])}.")
        files = {name: entry.file for name, entry in sorted(self.layout.items())}
        if len(set(files.values())) > 1:
            size = sum(entry.bytes for entry in self.layout.values())
            index = {"metadata": {"total_size": size}, "weight_map": files}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (self.folder / INDEX).write_text(text, encoding="utf-8")
