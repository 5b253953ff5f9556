"""Formats that are folders as they are: safetensors, and the adapter for peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from loradag.checkpoints.model_files import copy_all_but_weights
from loradag.checkpoints.safetensors_reader import read_entries, read_tensors
from loradag.checkpoints.safetensors_writer import ShardWriter, split_into_shards
from loradag.runtime import Paths

WEIGHTS = ("adapter_config.json", "adapter_model.safetensors")


def write_safetensors(merged: Path, folder: Path, max_shard_size: str) -> None:
    """The merged model in shards of at most `max_shard_size`, a tensor in memory at a time."""
    folder.mkdir(parents=True)
    copy_all_but_weights(merged, folder)
    layout = split_into_shards(read_entries(merged), max_shard_size)
    with ShardWriter(folder, layout) as writer:
        for name, tensor in read_tensors(merged):
            writer.write(name, tensor)


def write_adapter(adapter: Path, merged: Path, folder: Path, pin: dict[str, Any]) -> None:
    """peft's adapter, with the name of its base and the tokenizer it was trained with."""
    folder.mkdir(parents=True)
    for name in WEIGHTS:
        shutil.copyfile(adapter / name, folder / name)
    for file in sorted(merged.glob("*token*")) + sorted(merged.glob("*.jinja")):
        shutil.copyfile(file, folder / file.name)
    path = folder / WEIGHTS[0]
    config = json.loads(path.read_text(encoding="utf-8"))
    config["revision"] = pin["revision"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def base_quantization(paths: Paths) -> dict[str, Any] | None:
    """What quantises an adapter's base as it was in training: options of `BitsAndBytesConfig`.

    None: the adapter was trained on the full-precision base.
    """
    path = paths.quantized / "config.json"
    if not path.exists():
        return None
    options: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["quantization_config"]
    return options


def base_scheme(paths: Paths) -> str:
    """The quantisation of the base that an adapter was trained on."""
    described = json.loads((paths.quantized / "scheme.json").read_text(encoding="utf-8"))
    scheme = str(described["scheme"])
    return "full precision" if scheme == "none" else scheme
