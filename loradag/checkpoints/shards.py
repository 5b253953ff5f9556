"""Write a state dict in shards, as transformers reads it, the same bytes for the same tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SHARD = "250MB"  # safetensors copies all that goes into a file before it writes


def save_shards(
    state: dict[str, torch.Tensor], folder: Path, metadata: dict[str, str], shard: str = SHARD
) -> None:
    """Write `state` to `folder` in files of at most `shard`, with an index if there are several.

    Every file carries all of `metadata`: huggingface_hub's own writer leaves it out of shards,
    and torchao's tensors cannot be rebuilt without it.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(state, max_shard_size=shard)
    for name, keys in split.filename_to_tensors.items():
        tensors = {key: state[key].contiguous() for key in keys}
        save_file(tensors, folder / name, {"format": "pt", **metadata})
        _sort_metadata(folder / name)
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _sort_metadata(path: Path) -> None:
    """Put the header's metadata in order, in place: safetensors writes it in a random one."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length, "the same content in another order must fit"
        file.seek(8)
        file.write(text.ljust(length))
