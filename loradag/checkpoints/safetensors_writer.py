"""Write safetensors checkpoints a tensor at a time, so that memory holds no shard.

The library's `save_file` needs a full shard in memory. The format does not: a header with the place
of every tensor, then their bytes. Bytes depend on names, dtypes and values alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from loradag.checkpoints.safetensors_reader import DTYPES, FLOATS, INDEX, SINGLE, Entry
from loradag.config.problems import LoradagError

if TYPE_CHECKING:
    import torch

SHARD = "5GB"
PIECE = 2**20  # elements, or bytes


def split_into_shards(entries: Mapping[str, Entry], max_size: int | str) -> dict[str, Entry]:
    """The entries with files of at most `max_size`, such as "5GB", named as transformers does."""
    import dataclasses

    from huggingface_hub import split_state_dict_into_shards_factory

    split = split_state_dict_into_shards_factory(
        dict(entries),
        get_storage_size=lambda entry: entry.bytes,
        filename_pattern=SINGLE.replace(".", "{suffix}.", 1),
        max_shard_size=max_size,
    )
    return {
        name: dataclasses.replace(entry, file=split.tensor_to_filename[name])
        for name, entry in entries.items()
    }


class AppendingWriter:
    """Writes tensors as they come, and at its end the files that they are split into.

    For when layout and metadata are known only once all is computed. Tensors go to a temporary
    file of the folder first; memory holds one. Use as a context.
    """

    def __init__(self, folder: Path, max_size: int | str = SHARD) -> None:
        self.folder = folder
        self.max_size = max_size
        self.entries: dict[str, Entry] = {}
        self.offsets: dict[str, int] = {}
        self.metadata: dict[str, str] = {}  # every file carries all of it

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Append `tensor`, in its own dtype."""
        self.entries[name] = Entry("", _dtype_name(tensor), tuple(tensor.shape))
        self.offsets[name] = self._file.seek(0, 2)
        self._file.write(_bytes_of(tensor))

    def __enter__(self) -> AppendingWriter:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=self.folder)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file:
            if kind is not None:
                return
            layout = split_into_shards(dict(sorted(self.entries.items())), self.max_size)
            for file in sorted({entry.file for entry in layout.values()}):
                inside = {name: entry for name, entry in layout.items() if entry.file == file}
                header, places = _header(inside, self.metadata)
                with (self.folder / file).open("wb") as shard:
                    shard.write(header)
                    for name in places:  # in the order of their places
                        self._copy(name, shard)
            _write_index(self.folder, layout)

    def _copy(self, name: str, shard: IO[bytes]) -> None:
        self._file.seek(self.offsets[name])
        left = self.entries[name].bytes
        while left:
            left -= shard.write(self._file.read(min(left, PIECE)))


class ShardWriter:
    """Writes the tensors of `layout`, in any order, to the files which it names.

    As a context it checks at its end that every tensor was written, and adds the index that finds
    the files.
    """

    def __init__(self, folder: Path, layout: dict[str, Entry]) -> None:
        self.folder = folder
        self.layout = layout
        self.missing = set(layout)
        self.places: dict[str, int] = {}
        for file in sorted({entry.file for entry in layout.values()}):
            self._start(file)

    def _start(self, file: str) -> None:
        inside = {name: entry for name, entry in self.layout.items() if entry.file == file}
        header, places = _header(inside, {})
        self.places |= places
        with (self.folder / file).open("wb") as shard:
            shard.write(header)
            shard.truncate(len(header) + sum(entry.bytes for entry in inside.values()))

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
        if entry.dtype in FLOATS and not is_finite(stored):
            raise LoradagError(
                f"{name}: the merged weights are not finite numbers of dtype {entry.dtype}. "
                "Set merge.dtype=float32, or train with a lower train.learning_rate."
            )
        with (self.folder / entry.file).open("r+b") as shard:
            shard.seek(self.places[name])
            shard.write(_bytes_of(stored))
        self.missing.discard(name)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        if self.missing:
            raise LoradagError(f"the base has no {', '.join(sorted(self.missing)[:3])}.")
        _write_index(self.folder, self.layout)


def _header(
    entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The header of a file with `entries`, and where in the file each one starts, in that order.

    [https://github.com/huggingface/safetensors#format]
    """
    # Wide elements first, as the library does: then every tensor is aligned.
    order = sorted(entries, key=lambda name: (-DTYPES[entries[name].dtype][1], name))
    described: dict[str, object] = {
        "__metadata__": {"format": "pt", **dict(sorted(metadata.items()))}
    }
    places, end = {}, 0
    for name in order:
        entry = entries[name]
        places[name], end = end, end + entry.bytes
        described[name] = {
            "dtype": entry.dtype, "shape": entry.shape, "data_offsets": [places[name], end],
        }  # fmt: skip
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: len(header) + place for name, place in places.items()}


def _write_index(folder: Path, layout: Mapping[str, Entry]) -> None:
    """The index of a checkpoint; none where it is the one file that is found without."""
    files = {name: entry.file for name, entry in sorted(layout.items())}
    if set(files.values()) != {SINGLE}:
        size = sum(entry.bytes for entry in layout.values())
        index = {"metadata": {"total_size": size}, "weight_map": files}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")


def _dtype_name(tensor: torch.Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return next(stored for stored, (of_torch, _) in DTYPES.items() if of_torch == name)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    import torch

    data: memoryview = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are; piece by piece, since the test makes tensors of its input's size."""
    return all(bool(piece.isfinite().all()) for piece in tensor.view(-1).split(PIECE))
