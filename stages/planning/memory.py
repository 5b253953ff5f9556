"""Peak memory of `train` and `merge`, by formula from the model's shape and the params.

P parameters, of these P_l in linear layers; T trainable ones; b bytes of the compute dtype; t
tokens of the largest batch.

    train = process + weights + 16 T + activations + logits

- weights: b a parameter; of quantized linear layers what their scheme stores.
- 16 T: trainable parameters, their gradients and Adam's two moments, in float32; less with an
  optimizer that keeps less.
- activations: what backward needs of each layer: for a token b (10 h + 6 I), h hidden and I
  intermediate size, with an adapter on every linear layer (its dropout keeps a copy of each input).
- logits: t V, in float32 as logits, log-probabilities and their gradient.

`merge` writes a tensor at a time; its peak is the proof, which holds the trained model while it
loads the merged one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.planning.parameters import Shape, trainable_parameters

MIB = 2**20
# Interpreter and libraries, as measured: the host's share of every stage.
TRAIN_PROCESS = 700 * MIB
MERGE_PROCESS = 520 * MIB

# bytes a trainable parameter that an optimizer keeps
MOMENTS = {
    "adamw_torch": 8, "paged_adamw_32bit": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2,
    "adafactor": 0, "sgd": 0,
}  # fmt: skip


def train_bytes(shape: Shape, params: Mapping[str, Any], longest: int | None) -> int:
    """Peak of `train`; `longest`: tokens of the longest row, if known."""
    adapter, train = params["adapter"], params["train"]
    width = 4 if adapter["variant"] == "none" else dtype_bytes(train["dtype"], params["runtime"])
    row = (
        train["packing_tokens"] if train["packing"] else longest or params["prepare"]["max_tokens"]
    )
    tokens = train["batch_size"] * row
    trainable = trainable_parameters(shape, adapter)
    kept = 4 + MOMENTS[train["optimizer"]]  # gradients and moments
    if adapter["variant"] == "none":
        weights = 4.0 * shape.parameters
    else:
        weights = stored_bytes(shape, params["quantize"], width)
        kept += 4  # the weights themselves
    layers = 1 if train["gradient_checkpointing"] else shape.layers
    activations = width * tokens * layers * (10 * shape.hidden + 6 * shape.intermediate)
    logits = 3 * 4 * tokens * shape.vocabulary
    return int(_process(params, TRAIN_PROCESS) + weights + kept * trainable + activations + logits)


def merge_bytes(shape: Shape, params: Mapping[str, Any]) -> int:
    """Peak of `merge`: trained and merged model beside each other."""
    width = dtype_bytes("auto", params["runtime"])
    trained = stored_bytes(shape, params["quantize"], width)
    return int(_process(params, MERGE_PROCESS) + trained + width * shape.parameters)


def stored_bytes(shape: Shape, quantize: Mapping[str, Any], width: int) -> float:
    """Weights in memory: linear layers as their scheme stores them, all else in `width` bytes."""
    scheme = quantize["scheme"]
    if scheme == "none":
        return width * shape.parameters
    if scheme in ("nf4", "fp4"):
        scale = (1 + 4 / 256) if quantize["double_quant"] else 4  # bytes a block
        linear = 0.5 + scale / quantize["block_size"]
    else:
        linear = 1.0  # torchao holds fewer bits in bytes, too
    rest = shape.parameters - shape.linear_parameters
    return float(linear * shape.linear_parameters + width * rest)


def dtype_bytes(name: str, runtime: Mapping[str, Any]) -> int:
    """Bytes of a compute dtype; `auto` without torch: float32 on a CPU without bfloat16."""
    if name != "auto":
        return 4 if name == "float32" else 2
    if _on_gpu(runtime):
        return 2
    cpu = Path("/proc/cpuinfo")
    return 2 if cpu.exists() and "avx512_bf16" in cpu.read_text() else 4


def _on_gpu(runtime: Mapping[str, Any]) -> bool:
    there = Path("/proc/driver/nvidia/version").exists()
    return runtime["device"] == "cuda" or (runtime["device"] == "auto" and there)


def _process(params: Mapping[str, Any], measured: int) -> int:
    """The process itself; on a GPU it is not on the device."""
    return 0 if _on_gpu(params["runtime"]) else measured
