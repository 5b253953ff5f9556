"""Peak memory of `train` and `merge`, by formula from the model's shape and the params.

P parameters; T trainable ones; b bytes of the compute dtype; t tokens of the largest batch; h
hidden and I intermediate size; V vocabulary.

    train = process + weights + 16 T + rounded + experts + activations + logits

- weights: b a parameter; of quantized linear layers what their scheme stores.
- 16 T: trainable parameters, their gradients and Adam's two moments, in float32; less with an
  optimizer that keeps less.
- rounded: under qat and bitnet the rounded weights of the linear layers, which the backward pass
  needs; with an adapter also the update and its sum with the weights.
- experts: adapted experts compute with the sum of their weights and the update, which the backward
  pass needs; it takes twice the sum of one layer more, for the gradient.
- activations: what autograd keeps of each layer for the backward pass, counted on the Llama family:
  for a token b (10.4 h + 4 I); on frozen weights b (8 h + 4 I), and with dropout before every
  adapter b (17.6 h + 5 I). More by nearly a half, for what the allocator cannot fill.
- logits: t V in float32, as logits, log-probabilities and their gradients, and trl's metrics.

`merge` writes a tensor at a time; its peak is the verification, which loads one model after the
other in float32, and maps a checkpoint of 16 bits while its weights are converted. Of E parameters
of experts it has the stored pieces as well, in float32, while they are joined:

    merge = process + 6 P + 4 E + logits
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradag.planning.parameters import adapted_experts, trainable_parameters
from loradag.planning.shape import Shape
from loradag.training.shares import share_of

MIB = 2**20
# Interpreter and libraries, as measured: the host's share of every stage.
TRAIN_PROCESS = 720 * MIB
MERGE_PROCESS = 500 * MIB
ALLOCATOR = 1.45
LOGITS = 5  # tensors of t V at once

# bytes a trainable parameter that an optimizer keeps
MOMENTS = {
    "adamw_torch": 8, "paged_adamw_32bit": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2,
    "adafactor": 0, "sgd": 0,
}  # fmt: skip


@dataclass(frozen=True)
class TrainMemory:
    """The peak of `train` in its parts, in bytes."""

    process: int
    weights: float
    trained: float  # trainable parameters, gradients, moments
    rounded: float
    experts: float
    activations: float
    logits: float
    layer: float  # of the weights: one layer, which full sharding gathers to compute it

    @property
    def total(self) -> int:
        kept = self.rounded + self.experts + self.activations + self.logits
        return int(self.process + self.weights + self.trained + kept)

    def on_each_of(self, devices: int, sharding: str | None = "full_shard") -> int:
        """On each device, the same batch on each of them.

        With full sharding (FSDP, ZeRO-3) weights, gradients and moments are divided
        (https://arxiv.org/abs/1910.02054); activations and logits are not, and the weights of one
        layer are there in full while it computes. With `shard_grad_op` (ZeRO-2) the weights of a
        step are there in full as well; without sharding (DDP) everything is.
        """
        if devices == 1 or sharding is None:
            return self.total
        if sharding == "shard_grad_op":
            return int(self.total - self.trained * (1 - 1 / devices))
        divided = (self.weights + self.trained + self.rounded) / devices
        whole = self.layer + self.experts + self.activations + self.logits
        return int(self.process + divided + whole)


def train_bytes(shape: Shape, params: Mapping[str, Any], longest: int | None) -> int:
    """Peak of each process of `train`; `longest`: tokens of the longest row drawn, if known."""
    launch = params["launch"]
    return train_memory(shape, params, longest).on_each_of(launch["processes"], launch["sharding"])


def train_memory(shape: Shape, params: Mapping[str, Any], longest: int | None) -> TrainMemory:
    """The parts of the peak of `train`."""
    adapter, train = params["adapter"], params["train"]
    row = train["packing_tokens"] if train["packing"] else longest
    processes = params["launch"]["processes"]
    rows, _ = share_of(train["batch_size"], train["gradient_accumulation"], processes)
    tokens = rows * (row or params["prepare"]["max_tokens"])
    kept = 4 + MOMENTS[train["optimizer"]]  # gradients and moments
    if adapter["variant"] == "none":
        width, weights = 4, 4.0 * shape.parameters
    else:
        width = dtype_bytes(train["dtype"], params["runtime"])
        weights = stored_bytes(shape, params["quantize"], width)
        kept += 4  # the adapter's own weights
    layers = 1 if train["gradient_checkpointing"] else shape.layers
    return TrainMemory(
        process=_process(params, TRAIN_PROCESS),
        weights=weights,
        trained=kept * trainable_parameters(shape, adapter),
        rounded=_rounded_copies(params) * width * shape.linear_parameters,
        experts=width * adapted_experts(shape, adapter) * (layers + 2) / shape.layers,
        activations=ALLOCATOR * width * tokens * layers * _kept_floats(shape, adapter),
        logits=LOGITS * 4 * tokens * shape.vocabulary,
        layer=width * shape.linear_parameters / shape.layers,
    )


def merge_bytes(shape: Shape, params: Mapping[str, Any], longest: int | None) -> int:
    """Peak of `merge`: a model in float32, its mapped checkpoint, and the logits of a row."""
    weights = (4 + 2) * shape.parameters + 4 * shape.experts
    row = longest or params["prepare"]["max_tokens"]
    logits = LOGITS * 4 * row * shape.vocabulary
    return _process(params, MERGE_PROCESS) + weights + logits


def longest_drawn(lengths: Mapping[str, Any], train: Mapping[str, Any]) -> int:
    """The likely length of the longest row that training draws, by the histogram of all rows.

    The longest of few rows is not the longest of all: the median of the maximum of n draws lies
    where n times the share of longer rows is ln 2.
    """
    histogram, steps = lengths.get("histogram"), train["max_steps"]
    if steps is None or histogram is None:
        return int(lengths["max"])
    counts, width = histogram["counts"], histogram["width"]
    drawn = steps * train["batch_size"] * train["gradient_accumulation"]
    share = min(1.0, drawn / sum(counts))
    longer = 0
    for i in reversed(range(len(counts))):
        longer += counts[i]
        if longer * share >= math.log(2):
            return int(min((i + 1) * width, lengths["max"]))
    return int(lengths["max"])


def stored_bytes(shape: Shape, quantize: Mapping[str, Any], width: int) -> float:
    """Weights in memory: linear layers as their scheme stores them, all else in `width` bytes."""
    scheme = quantize["scheme"]
    if scheme == "none":
        return float(width * shape.parameters)
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


def _rounded_copies(params: Mapping[str, Any]) -> int:
    """How many tensors of the linear layers' size the backward pass needs beside the weights."""
    if params["train"]["method"] == "sft":
        return 0
    return 1 if params["adapter"]["variant"] == "none" else 3


def _kept_floats(shape: Shape, adapter: Mapping[str, Any]) -> float:
    """Numbers that autograd keeps of a layer for a token."""
    if adapter["variant"] == "none":
        return 10.4 * shape.hidden + 4 * shape.intermediate
    if adapter["dropout"]:
        return 17.6 * shape.hidden + 5 * shape.intermediate
    return 8.0 * shape.hidden + 4 * shape.intermediate


def _on_gpu(runtime: Mapping[str, Any]) -> bool:
    there = Path("/proc/driver/nvidia/version").exists()
    return bool(runtime["device"] == "cuda" or (runtime["device"] == "auto" and there))


def _process(params: Mapping[str, Any], measured: int) -> int:
    """The process itself; on a GPU it is not on the device."""
    return 0 if _on_gpu(params["runtime"]) else measured
