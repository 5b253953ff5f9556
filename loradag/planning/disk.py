"""Bytes that stages store, by formula from the model's shape and the params.

P: parameters of the model. T: parameters of the adapter. w: bytes per weight of the base, 2, or 4
for random weights.

    fetch      w P; 0 for weights of a hub, which its own cache has, and for local ones
    quantize   linear layers as their scheme stores them, w per other weight
    train      4 T; 4 P where the result is a full checkpoint
    merge      w P, or as merge.dtype says
    export     P times the bits per weight of each format

Reports, rows and tokenizers are left out. While `train` runs, its last two checkpoints take 12
bytes a trained parameter each; they are deleted at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loradag.config.export import listed
from loradag.planning.memory import stored_bytes
from loradag.planning.parameters import trainable_parameters
from loradag.planning.shape import Shape

# Bits per weight. Those of mixed types are of Llama 3.1 8B with its embedding, from the README of
# llama.cpp's `llama-quantize`.
GGUF_BITS = {
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5,
    "tq2_0": 2.06, "tq1_0": 1.69, "q6_k": 6.56, "q5_k_m": 5.7, "q4_k_m": 4.89, "q3_k_m": 4.0,
    "iq4_xs": 4.46,
}  # fmt: skip
COMPRESSED_BITS = {"w8a8": 8, "fp8": 8, "w4a16": 4.25}


def stage_bytes(stage: str, shape: Shape, params: Mapping[str, Any]) -> float:
    """Bytes that a run of `stage` adds to the cache."""
    model, merge = params["model"], params["merge"]
    width = 4 if model["source"] == "random" else 2
    if stage == "fetch" and model["source"] in ("package", "random"):
        return float(width * shape.parameters)
    if stage == "quantize" and params["quantize"]["scheme"] != "none":
        return stored_bytes(shape, params["quantize"], width)
    if stage == "train":
        return _trained_bytes(shape, params)
    if stage == "merge":
        merged = {"auto": width, "float32": 4}.get(merge["dtype"], 2)
        return float(merged * shape.parameters)
    if stage == "export":
        formats = listed(params["export"]["formats"])
        return sum(_format_bytes(name, shape, params) for name in formats)
    return 0


def _trained_bytes(shape: Shape, params: Mapping[str, Any]) -> float:
    if params["adapter"]["variant"] == "none" or params["train"]["method"] == "qat":
        return 4.0 * shape.parameters
    return 4.0 * trainable_parameters(shape, params["adapter"])


def _format_bytes(name: str, shape: Shape, params: Mapping[str, Any]) -> float:
    export = params["export"]
    if name == "gguf":
        return sum(GGUF_BITS[type] for type in listed(export["type"])) / 8 * shape.parameters
    if name == "safetensors":
        return stage_bytes("merge", shape, params)
    if name == "compressed":
        rest = shape.parameters - shape.linear_parameters
        return COMPRESSED_BITS[export["compressed"]] / 8 * shape.linear_parameters + 2.0 * rest
    return _trained_bytes(shape, params)
