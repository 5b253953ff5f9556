"""What cannot be adapted or exported, known from the base and the config before training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loradag.checkpoints.skeleton import without_weights
from loradag.compat.gguf import ConversionError, check_convertible
from loradag.config.adapter import Adapter
from loradag.config.export import is_mixed, listed
from loradag.config.problems import LoradagError
from loradag.config.sections import Config
from loradag.data.calibration_rows import read_calibration_rows
from loradag.export.compressed import plan_compression
from loradag.export.gguf_adapter import linked_base
from loradag.export.gguf_format import FLOAT_TYPES
from loradag.export.push import check_push
from loradag.runtime.paths import Paths
from loradag.training.experts import expert_matrices
from loradag.training.lora import lora_config

# Gemma's sizes whose attention scale llama.cpp takes from width and heads, by their layers.
GEMMA_27B = {"gemma2": 46, "gemma3_text": 62}


def check_feasible(paths: Paths, config: Config) -> None:
    """Refuse a run that could only fail after its training.

    Raises:
        LoradagError: the model has experts that the run would leave out, or llama.cpp cannot run
            it, or a push has no token.
    """
    check_push(config.export)
    described = json.loads((paths.base / "config.json").read_text(encoding="utf-8"))
    _check_experts(paths.base, config)
    formats = listed(config.export.formats)
    if "gguf_adapter" in formats:
        _check_adapted_layers(paths.base, config.adapter)
    if {"gguf", "gguf_adapter"} & set(formats):
        _check_llamacpp(described)
        _check_converter(paths.base)
    if "compressed" in formats:
        if experts := _find_experts(paths.base):
            raise LoradagError(
                f"export.formats: {experts}, which compressed does not quantise. Take "
                "export=safetensors."
            )
        plan_compression(paths.base, config.export.compressed)
    rounded = [type for type in listed(config.export.type) if type not in FLOAT_TYPES]
    if "gguf" in formats and rounded and (experts := _find_experts(paths.base)):
        missing = (
            "the importance of whose columns is not measured"
            if is_mixed(config.export)
            else f"whose rounding to {rounded[0]} is not verified"
        )
        raise LoradagError(
            f"export.type: {experts}, {missing}. Take export.type=f16 or export=safetensors."
        )


def check_before_training(paths: Paths, config: Config) -> None:
    """`check_feasible`, and what is known only once the rows are prepared.

    Raises:
        LoradagError: as there, or there are no calibration rows to round an export by.
    """
    check_feasible(paths, config)
    if is_mixed(config.export):
        read_calibration_rows(paths.prepared / "calibration.parquet", 1, "export.type")


def _check_experts(base: Path, config: Config) -> None:
    """Refuse what would leave out experts that it should reach, or was never tried on them."""
    experts = _find_experts(base)
    if experts is None:
        return
    if config.quantize.scheme != "none":
        raise LoradagError(
            f"quantize.scheme: {experts}, which no scheme quantises. Take quantize=none."
        )
    if config.train.method != "sft":
        raise LoradagError(
            f"train.method = {config.train.method}: {experts}, whose weights it does not round. "
            "Take train=sft."
        )
    if config.adapter.variant == "none":
        return
    adapted = lora_config(config.adapter, without_weights(base)).target_parameters
    if adapted and config.launch.strategy == "deepspeed":
        raise LoradagError(
            f"launch.strategy = deepspeed: {experts}, whose adapters were never tried on a model "
            "that it divides. Take launch=fsdp or ddp, or name layers without experts in "
            "adapter.target_modules, such as [q_proj,v_proj]."
        )


def _find_experts(base: Path) -> str | None:
    model = without_weights(base)
    if matrices := expert_matrices(model):
        return f"{type(model).__name__} has experts that are no linear layers ({matrices[0]})"
    return None


def _check_llamacpp(described: dict[str, Any]) -> None:
    """What llama.cpp does not read from a file, and computes in one way only."""
    kind = str(described.get("model_type"))
    head = described.get("head_dim")
    scalar = described.get("query_pre_attn_scalar")
    if kind in GEMMA_27B and scalar is not None:
        if described["num_hidden_layers"] == GEMMA_27B[kind]:
            head = described["hidden_size"] // described["num_attention_heads"]
        if scalar != head:
            raise _refused(
                f"it takes the attention scale from the head size {head}, where the model's "
                f"query_pre_attn_scalar is {scalar}"
            )
    if kind == "qwen3_moe" and not described.get("norm_topk_prob"):
        raise _refused(
            "it normalises the weights of the chosen experts, where the model's norm_topk_prob is "
            "false"
        )


def _check_converter(base: Path) -> None:
    """Let the converter read the weights' names with the tokenizer of `base`."""
    with linked_base(base) as folder:
        try:
            check_convertible(folder)
        except ConversionError as error:
            raise _refused(f"its converter fails: {error}") from error


def _check_adapted_layers(base: Path, adapter: Adapter) -> None:
    """llama.cpp's LoRA file is for the matrices in the blocks."""
    from loradag.compat.peft import is_targeted

    model = without_weights(base)
    config = lora_config(adapter, model)
    if config.target_parameters:
        raise LoradagError(
            f"adapter.target_modules: means {min(config.target_parameters)}, and export.formats = "
            "gguf_adapter has adapters of linear layers alone. Name layers without experts, such "
            "as [q_proj,v_proj], or export gguf or adapter."
        )
    if adapter.target_modules == "all-linear":  # without the embedding
        return
    embedding = model.get_input_embeddings()
    for name, module in model.named_modules():
        if module is embedding and is_targeted(config, name):
            raise LoradagError(
                f"adapter.target_modules: names {name}, and export.formats = gguf_adapter has "
                "adapters of the matrices in the blocks alone. Leave it out, or export gguf or "
                "adapter."
            )


def _refused(reason: str) -> LoradagError:
    return LoradagError(
        f"export.formats: llama.cpp cannot run this model as it is: {reason}. Take "
        "export=safetensors."
    )
