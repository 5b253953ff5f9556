"""Every format that the config names: written and described."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loradag.checkpoints.model_files import PIN, copy_licenses
from loradag.config.export import Export, listed
from loradag.data.templates import render_prompt
from loradag.data.token_contract import read_contract
from loradag.export.card import Origin, write_card
from loradag.export.compressed import write_compressed
from loradag.export.folders import base_quantization, write_adapter, write_safetensors
from loradag.export.gguf_adapter import write_gguf_adapter
from loradag.export.gguf_format import write_gguf
from loradag.export.importance import Importance
from loradag.export.measurement import without_added_bos
from loradag.export.modelfile import write_modelfile
from loradag.export.reference import COMPRESSED, GGUF, GGUF_ADAPTER
from loradag.models.pinning import sha256
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from loradag.runtime.report_keys import ExportedFile


def read_pin(base: Path) -> dict[str, Any]:
    pin: dict[str, Any] = json.loads((base / PIN).read_text(encoding="utf-8"))
    return pin


def write_formats(
    paths: Paths, folder: Path, export: Export, origin: Origin, importance: Importance
) -> tuple[dict[str, Path], dict[str, dict[str, str]]]:
    """Fill `folder`, a folder a format; return what runtimes load, and what fell back, by format.

    Each folder has the base's licences.
    GGUF has a format a type.

    Args:
        importance: of the columns of the merged model's layers.
    """
    exported: dict[str, Path] = {}
    fallbacks: dict[str, dict[str, str]] = {}
    for kind in listed(export.formats):
        place = folder / kind
        if kind == "safetensors":
            write_safetensors(paths.merged, place, export.max_shard_size)
            exported[kind] = place
        elif kind == "adapter":
            write_adapter(paths.adapter, paths.merged, place, origin.base)
            exported[kind] = place
        elif kind == "compressed":
            write_compressed(paths.merged, place, export.compressed, export.max_shard_size)
            exported[COMPRESSED + export.compressed] = place
        elif kind == GGUF_ADAPTER:
            place.mkdir(parents=True)
            exported[kind] = place / f"{origin.name}-adapter.gguf"
            write_gguf_adapter(paths, exported[kind], origin.name)
        else:
            place.mkdir(parents=True)
            files = {type: place / f"{origin.name}-{type}.gguf" for type in listed(export.type)}
            for type, file in files.items():
                fallbacks[GGUF + type] = write_gguf(
                    paths.merged, file, type, origin.name, importance
                )
                exported[GGUF + type] = file
            write_modelfile(
                place / "Modelfile",
                [file.name for file in files.values()],
                load_tokenizer(paths.merged),
                read_contract(paths.contract),
            )
        copy_licenses(paths.merged, place)
    return exported, fallbacks


def describe(
    paths: Paths, folder: Path, export: Export, origin: Origin, numbers: dict[str, Any]
) -> None:
    """A model card in each format's folder."""
    template, tokenizer = read_contract(paths.contract).template, load_tokenizer(paths.merged)
    prompt = without_added_bos(render_prompt(template, "…", tokenizer), tokenizer)
    for kind in listed(export.formats):
        files = sorted(file.name for file in (folder / kind).glob("*.gguf"))
        write_card(
            folder / kind / "README.md",
            kind,
            origin,
            {name: found for name, found in numbers.items() if _kind(name) == kind},
            file=next(iter(files), ""),
            prompt=prompt,
            quantization=base_quantization(paths),
        )


def _kind(name: str) -> str:
    """The kind of a format: that of each of GGUF's types is gguf."""
    return name if name == GGUF_ADAPTER else name.partition("_")[0]


def list_files(folder: Path) -> list[ExportedFile]:
    """Every exported file: format, path below the export's folder, bytes, sha256."""
    return [
        {
            "format": file.relative_to(folder).parts[0],
            "path": file.relative_to(folder).as_posix(),
            "bytes": file.stat().st_size,
            "sha256": sha256(file),
        }
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    ]
