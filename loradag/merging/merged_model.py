"""The merged model as a complete folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.checkpoints.model_files import copy_all_but_weights
from loradag.merging.streaming import cast, merge_streaming
from loradag.models.loading import is_adapter, is_quantized
from loradag.models.pinning import weights_folder
from loradag.runtime import Paths

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch


def write_merged(paths: Paths, folder: Path, *, base: str, dtype: str) -> None:
    """Fill `folder` with the tuned model: weights, configs, tokenizer, chat template.

    Where every weight was trained, that checkpoint is the merged model, its floats in `dtype`. Else
    the adapter is merged into the `original` base, or into the `dequantized` weights that training
    saw.
    """
    folder.mkdir(parents=True)
    copy_all_but_weights(paths.base, folder)
    untied = False
    if is_adapter(paths):
        untied = merge_streaming(
            weights_folder(paths.base),
            paths.adapter,
            folder,
            dtype=dtype,
            weights=float_weights(paths, base),
        )
    else:
        copy_all_but_weights(paths.adapter, folder)
        cast(paths.adapter, folder, dtype)
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if dtype != "auto":
        config.pop("torch_dtype", None)  # the older spelling
        config["dtype"] = dtype
    if untied:
        config["tie_word_embeddings"] = False
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def float_weights(paths: Paths, base: str) -> Iterator[tuple[str, torch.Tensor]] | None:
    """(name, float32 weight) of what is merged into; None: the base's own weights."""
    if base == "original" or not is_quantized(paths):
        return None
    from loradag.quantization.dequantize import dequantized

    weights: Iterator[tuple[str, torch.Tensor]] = dequantized(paths.quantized)
    return weights
