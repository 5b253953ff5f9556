"""Parameters of a model and of an adapter on it, by formula from the model's config.

h hidden size, L layers, V vocabulary, I intermediate size, H and K attention and key-value heads
of width d. A layer of the Llama family holds

    q (h, Hd)   k, v (h, Kd)   o (Hd, h)   gate, up (h, I)   down (I, h)   and two norms of h,

the model L of them, embeddings of V h, a last norm of h, and, untied, an output of V h.
LoRA of rank r adds r (in + out) to a matrix (https://arxiv.org/abs/2106.09685), DoRA a magnitude
of out beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FAMILIES = {"llama", "mistral", "gemma", "qwen2"}
BIASED = {"qwen2": ("q_proj", "k_proj", "v_proj")}
UNTIED_BY_DEFAULT = {"llama", "mistral", "qwen2"}


@dataclass(frozen=True)
class Linear:
    """A weight matrix that an adapter can stand on."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Shape:
    """What the formulas need of a model."""

    hidden: int
    layers: int
    vocabulary: int
    intermediate: int
    heads: int
    linears: tuple[Linear, ...]  # of all layers
    tied: bool

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def linear_parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears)

    @property
    def parameters(self) -> int:
        embeddings = self.embedding * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.hidden
        return embeddings + self.linear_parameters + norms


def model_shape(model: Mapping[str, Any]) -> Shape | None:
    """The shape that the `model` section tells; None: not told, or of another family."""
    config = dict(model.get("config") or {})
    if model["source"] == "local" and not config:
        path = Path(str(model["path"])).expanduser() / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    family = config.get("model_type")
    if family not in FAMILIES:
        return None
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    key_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
    inner = config["intermediate_size"]
    sizes = {
        "self_attn.q_proj": (hidden, heads * width),
        "self_attn.k_proj": (hidden, key_heads * width),
        "self_attn.v_proj": (hidden, key_heads * width),
        "self_attn.o_proj": (heads * width, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }
    linears = tuple(
        Linear(f"model.layers.{layer}.{name}", *size,
               bias=name.rpartition(".")[2] in BIASED.get(family, ()))
        for layer in range(layers)
        for name, size in sizes.items()
    )  # fmt: skip
    tied = config.get("tie_word_embeddings", family not in UNTIED_BY_DEFAULT)
    return Shape(hidden, layers, config["vocab_size"], inner, heads, linears, tied)


def trainable_parameters(shape: Shape, adapter: Mapping[str, Any]) -> int:
    """What training updates: the adapter's parameters, or all of them."""
    if adapter["variant"] == "none":
        return shape.parameters
    rank = int(adapter["r"])
    targets = [linear for linear in _adaptable(shape) if _is_target(linear.name, adapter)]
    added = sum(rank * (linear.inputs + linear.outputs) for linear in targets)
    if adapter["variant"] == "dora":
        added += sum(linear.outputs for linear in targets)
    biased = {"none": [], "all": shape.linears, "lora_only": targets}[adapter["bias"]]
    biases = sum(linear.outputs for linear in biased if linear.bias)
    whole = adapter["modules_to_save"] or []
    saved = sum(m.parameters for m in _adaptable(shape) if m.name.rpartition(".")[2] in whole)
    return added + biases + saved


def total_parameters(shape: Shape, adapter: Mapping[str, Any]) -> int:
    """Of the model in training; biases are trained in place, all else is added."""
    if adapter["variant"] == "none":
        return shape.parameters
    without_bias = {**adapter, "bias": "none"}
    return shape.parameters + trainable_parameters(shape, without_bias)


def _adaptable(shape: Shape) -> tuple[Linear, ...]:
    return (
        *shape.linears,
        Linear("model.embed_tokens", shape.vocabulary, shape.hidden),
        Linear("lm_head", shape.hidden, shape.vocabulary),
    )


def _is_target(name: str, adapter: Mapping[str, Any]) -> bool:
    """As peft matches `target_modules`: all linear layers but the output, names, or a regex."""
    targets = adapter["target_modules"]
    if targets == "all-linear":
        return ".layers." in name
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)
