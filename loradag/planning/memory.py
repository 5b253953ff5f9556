"""Peak memory of `train` and `merge`, by formula from the model's shape and the params.

P: parameters. T: trainable parameters. b: bytes of the compute dtype. t: tokens of the largest
batch. h: hidden size. I: intermediate size. V: vocabulary.

    train = process + weights + 16 T + rounded + experts + activations + logits

- weights: b per parameter; quantized linear layers as their scheme stores them.
- 16 T: trainable parameters, their gradients and Adam's two moments, in float32; less with an
  optimizer that keeps fewer or smaller moments.
- rounded: under qat and bitnet the rounded weights of the linear layers, which the backward pass
  needs; with an adapter also the update and its sum with the weights.
- experts: adapted experts compute with the sum of their weights and the update. The backward pass
  needs that sum, and for the gradient twice the sum of one layer more.
- activations: what autograd keeps of each layer for the backward pass, counted on the Llama family:
  b (10.4 h + 4 I) per token; on frozen weights b (8 h + 4 I), and with dropout before every adapter
  4 (9.6 h + I) more. Fragmentation of the allocator adds nearly a half.
- logits: of 128 tokens in float32, as logits, log-probabilities and their gradients, times V; on a
  GPU trl's kernel has one tile of at most 4096 tokens by 32768 columns in the compute dtype. The
  held-out loss has those of at most 256 MiB three times, but no activations: the larger counts.

`merge` writes a tensor at a time. Its peak is the verification, which loads one model after the
other in float32, and maps a checkpoint of 16 bits while its weights are converted. For E parameters
of experts it also holds the stored pieces in float32 while they are joined:

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
# Bytes of the interpreter and the libraries, as measured; on the host, whatever the device.
TRAIN_PROCESS = 720 * MIB
MERGE_PROCESS = 500 * MIB
ALLOCATOR = 1.45  # fragmentation: allocated over used bytes of activations
LOGITS = 5  # tensors of tokens by V at once
LOSS_TOKENS = 128  # whose logits are there at once, as `loradag.compat.trl` computes the loss
HELD_OUT_LOGITS = 3  # tensors of logits at once in the held-out loss
HELD_OUT_BYTES = 256 * MIB  # of each, at most, as `loradag.evaluation.perplexity` computes it

# Bytes per trainable parameter that an optimizer keeps.
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
    layer: float  # weights of one layer, which full sharding gathers to compute it

    @property
    def total(self) -> int:
        kept = self.rounded + self.experts + self.activations + self.logits
        return int(self.process + self.weights + self.trained + kept)

    def on_each_of(self, devices: int, sharding: str | None = "full_shard") -> int:
        """The peak on each of `devices`, with the same batch on each, in bytes.

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
    """Peak of each process of `train` in bytes.

    Args:
        shape: of the model.
        params: by section.
        longest: tokens of the longest row that is drawn; None: not known, so the most allowed.
    """
    launch = params["launch"]
    return train_memory(shape, params, longest).on_each_of(launch["processes"], launch["sharding"])


def train_memory(shape: Shape, params: Mapping[str, Any], longest: int | None) -> TrainMemory:
    """The parts of the peak of `train`; arguments as of `train_bytes`."""
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
    computed = dtype_bytes(train["dtype"], params["runtime"])
    activations = ALLOCATOR * tokens * layers * _kept_bytes(shape, adapter, computed)
    loss = LOGITS * 4 * min(tokens, LOSS_TOKENS) * shape.vocabulary
    held_out = HELD_OUT_LOGITS * min(HELD_OUT_BYTES, 4 * tokens * shape.vocabulary)
    return TrainMemory(
        process=_process(params, TRAIN_PROCESS),
        weights=weights,
        trained=kept * trainable_parameters(shape, adapter),
        rounded=_rounded_copies(params) * width * shape.linear_parameters,
        experts=width * adapted_experts(shape, adapter) * (layers + 2) / shape.layers,
        activations=activations,
        logits=max(loss, held_out - activations),
        layer=width * shape.linear_parameters / shape.layers,
    )


def merge_bytes(shape: Shape, params: Mapping[str, Any], longest: int | None) -> int:
    """Peak of `merge` in bytes; arguments as of `train_bytes`."""
    weights = (4 + 2) * shape.parameters + 4 * shape.experts
    row = longest or params["prepare"]["max_tokens"]
    logits = LOGITS * 4 * row * shape.vocabulary
    return _process(params, MERGE_PROCESS) + weights + logits


def longest_drawn(lengths: Mapping[str, Any], train: Mapping[str, Any]) -> int:
    """The likely length in tokens of the longest row that training draws.

    A few drawn rows rarely include the longest of all. The median of the maximum of n draws is the
    length at which n times the share of longer rows is ln 2.

    Args:
        lengths: `token_length` of the report of `prepare`.
        train: the section.
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
    """Bytes of the weights: linear layers as their scheme stores them, others in `width` each."""
    scheme = quantize["scheme"]
    if scheme == "none":
        return float(width * shape.parameters)
    if scheme in ("nf4", "fp4"):
        scale = (1 + 4 / 256) if quantize["double_quant"] else 4  # bytes a block
        linear = 0.5 + scale / quantize["block_size"]
    else:
        linear = 1.0  # torchao stores a code of fewer bits in a byte too
    rest = shape.parameters - shape.linear_parameters
    return float(linear * shape.linear_parameters + width * rest)


def dtype_bytes(name: str, runtime: Mapping[str, Any]) -> int:
    """Bytes of a compute dtype. `auto`, without torch: float32 on a CPU without bfloat16."""
    if name != "auto":
        return 4 if name == "float32" else 2
    if _on_gpu(runtime):
        return 2
    cpu = Path("/proc/cpuinfo")
    return 2 if cpu.exists() and "avx512_bf16" in cpu.read_text() else 4


def _rounded_copies(params: Mapping[str, Any]) -> int:
    """How many copies of the linear layers' weights the backward pass of qat or bitnet needs."""
    if params["train"]["method"] == "sft":
        return 0
    return 1 if params["adapter"]["variant"] == "none" else 3


def _kept_bytes(shape: Shape, adapter: Mapping[str, Any], width: int) -> float:
    """Bytes that autograd keeps for a token of a layer; `width`: of a number that is computed."""
    if adapter["variant"] == "none":
        return width * (10.4 * shape.hidden + 4 * shape.intermediate)
    kept = width * (8.0 * shape.hidden + 4 * shape.intermediate)
    if adapter["dropout"]:  # peft drops inputs in the dtype of the adapter
        kept += 4 * (9.6 * shape.hidden + shape.intermediate)
    return kept


def _on_gpu(runtime: Mapping[str, Any]) -> bool:
    there = Path("/proc/driver/nvidia/version").exists()
    return bool(runtime["device"] == "cuda" or (runtime["device"] == "auto" and there))


def _process(params: Mapping[str, Any], measured: int) -> int:
    """Bytes of the process itself, `measured`; none on a GPU."""
    return 0 if _on_gpu(params["runtime"]) else measured
