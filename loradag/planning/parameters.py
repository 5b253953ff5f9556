"""The number of parameters of a model and of an adapter on it, from the model's config.

For the Llama family it is a formula, without torch. h: hidden size. L: layers. V: vocabulary. I:
intermediate size. H and K: attention and key-value heads, of width d. A layer has

    q (h, Hd)   k, v (h, Kd)   o (Hd, h)   gate, up (h, I)   down (I, h)   and two norms of h,

The model has L layers, an embedding of V h, a last norm of h, and an untied output layer of V h.
Other architectures are built on the meta device and counted.

LoRA of rank r adds r (in + out) to a matrix (https://arxiv.org/abs/2106.09685); DoRA also adds a
magnitude for each output.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from loradag.planning.shape import Linear, Shape

BIASED = {"llama": (), "mistral": (), "gemma": (), "qwen2": ("q_proj", "k_proj", "v_proj")}
TIED_BY_DEFAULT = ("gemma",)
SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
)  # fmt: skip


def model_shape(model: Mapping[str, Any]) -> Shape | None:
    """The shape of the model that the `model` section describes.

    None: its config is not known before it is fetched, or transformers has no such causal LM.
    """
    config = dict(model.get("config") or {})
    if model["source"] == "local" and not config:
        path = Path(str(model["path"])).expanduser() / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if not config.get("model_type"):
        return None
    if _has_formula(config):
        return llama_shape(config)
    from loradag.planning.meta_model import shape_on_meta

    return shape_on_meta(config)


def _has_formula(config: Mapping[str, Any]) -> bool:
    """Whether `llama_shape` knows the family, and the config has all sizes that it needs."""
    return (
        config["model_type"] in BIASED
        and all(config.get(key) for key in SIZES)
        and not config.get("attention_bias")
        and not config.get("mlp_bias")
        and bool(config.get("head_dim") or config["model_type"] != "gemma")
    )


def llama_shape(config: Mapping[str, Any]) -> Shape:
    """The shape of a model of the Llama family, by formula."""
    family, hidden, layers = (
        config["model_type"],
        config["hidden_size"],
        config["num_hidden_layers"],
    )
    heads, inner, vocabulary = (
        config["num_attention_heads"], config["intermediate_size"], config["vocab_size"],
    )  # fmt: skip
    key_heads = config.get("num_key_value_heads") or heads
    width = config.get("head_dim") or hidden // heads
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
               bias=name.rpartition(".")[2] in BIASED[family])
        for layer in range(layers)
        for name, size in sizes.items()
    )  # fmt: skip
    embedding = Linear("model.embed_tokens", vocabulary, hidden)
    tied = config.get("tie_word_embeddings", family in TIED_BY_DEFAULT)
    norms = (2 * layers + 1) * hidden
    return Shape(
        parameters=sum(linear.parameters for linear in linears)
        + embedding.parameters * (1 if tied else 2)
        + norms,
        hidden=hidden,
        layers=layers,
        intermediate=inner,
        linears=linears,
        embedding=embedding,
        output=Linear("lm_head", hidden, vocabulary),
    )


def trainable_parameters(shape: Shape, adapter: Mapping[str, Any]) -> int:
    """The number of parameters that training updates."""
    if adapter["variant"] == "none":
        return shape.parameters
    if shape.config is not None:
        return _count_on_meta(shape.config, json.dumps(adapter))[0]
    rank = int(adapter["r"])
    matrices = (*shape.linears, shape.embedding, shape.output)
    targets = _targets(shape, adapter["target_modules"])
    added = sum(rank * (linear.inputs + linear.outputs) for linear in targets)
    if adapter["variant"] == "dora":
        added += sum(linear.outputs for linear in targets)
    biased = {"none": (), "all": shape.linears, "lora_only": targets}[adapter["bias"]]
    biases = sum(linear.outputs for linear in biased if linear.bias)
    copied = adapter["modules_to_save"] or []
    saved = sum(m.parameters for m in matrices if m.name.rpartition(".")[2] in copied)
    return added + biases + saved


def total_parameters(shape: Shape, adapter: Mapping[str, Any]) -> int:
    """The number of parameters of the model with its adapter; trained biases are its own."""
    if adapter["variant"] == "none":
        return shape.parameters
    if shape.config is not None:
        return _count_on_meta(shape.config, json.dumps(adapter))[1]
    without_bias = {**adapter, "bias": "none"}
    return shape.parameters + trainable_parameters(shape, without_bias)


def adapted_experts(shape: Shape, adapter: Mapping[str, Any]) -> int:
    """The number of parameters of experts that the adapter updates."""
    if adapter["variant"] == "none" or shape.config is None:
        return 0
    return _count_on_meta(shape.config, json.dumps(adapter))[2]


@cache
def _count_on_meta(config: str, adapter: str) -> tuple[int, int, int]:
    """`count_on_meta`, cached, since many jobs of a sweep have the same adapter."""
    from loradag.planning.meta_model import count_on_meta

    return count_on_meta(json.loads(config), json.loads(adapter))


def _targets(shape: Shape, targets: str | Sequence[str]) -> tuple[Linear, ...]:
    """The matrices that peft adapts for `targets`: "all-linear", names, or a regular expression."""
    if targets == "all-linear":
        return shape.linears
    matrices = (*shape.linears, shape.embedding, shape.output)
    if isinstance(targets, str):
        return tuple(linear for linear in matrices if re.fullmatch(targets, linear.name))
    return tuple(
        linear
        for linear in matrices
        if any(linear.name == target or linear.name.endswith(f".{target}") for target in targets)
    )
