"""What each exported format should compute, computed in transformers in float32.

safetensors: the merged model. GGUF and compressed: the merged model with its weights as the format
stores them. An adapter: the model as trained. What a runtime may differ by is measured as well: by
letting the expected model round its activations as the runtime does.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loradag.evaluation.parity import Probe, comparison_dtype, dtype_name, parity, recorded
from loradag.export.compressed import plan_compression, round_compressed, rounding_tokens
from loradag.export.gguf_format import (
    FLOAT_TYPES,
    float_type,
    is_exact,
    read_storage,
    round_weights,
    rounded_activations,
)
from loradag.export.importance import Importance
from loradag.export.measurement import Inputs, Measurement
from loradag.export.plain_transformers import answer, write_logits
from loradag.models.loading import is_quantized, load_base, load_model, load_quantized, load_tuned
from loradag.models.pinning import weights_folder
from loradag.models.tokenizer import load_tokenizer
from loradag.quantization.lattice import read_lattice
from loradag.runtime import Paths

GGUF = "gguf_"
GGUF_ADAPTER = "gguf_adapter"  # no type of GGUF
COMPRESSED = "compressed_"
FLOAT_TOLERANCE = 1e-3  # relative, of perplexity and of a token's NLL: no weight is rounded
# A distribution may differ by this many times what the rounding of activations makes of it: another
# order of sums rounds other activations.
ROUNDING = 4
# A runtime that rounds as the expected model does differs where a sum in another order moves a tie.
TIES = 0.1
SUMS = 1e-6  # nats of KL, and nats of NLL, that the order of float32 sums explains


@dataclass(frozen=True)
class Expected:
    """What a format should compute, and by how much it may differ.

    Attributes:
        logits: folders of a file a row: the model's, and where a runtime rounds activations the
            model's with rounded ones. llama.cpp computes the second on a CPU, elsewhere the first
            or another rounding.
        kl: nats a token, between the next token's distributions.
        nll: nats, between the NLL of a token, mean.
        perplexity: relative change.
    """

    logits: list[Path]
    kl: float
    nll: float
    perplexity: float


@dataclass(frozen=True)
class Reference:
    """The merged model's answers, and what each format should compute."""

    merged: Measurement
    expected: dict[str, Expected]
    dtype: str
    rounds_activations: bool


def compute_reference(
    paths: Paths,
    formats: list[str],
    inputs: Inputs,
    scratch: Path,
    tolerance: float,
    importance: Importance,
) -> Reference:
    """Load the merged model as few times as its formats allow, and the trained one for an adapter.

    Args:
        tolerance: relative change of perplexity that is allowed where weights are quantised.
        importance: of the columns that mixtures are rounded by.
    """
    dtype = comparison_dtype(paths.merged)
    model = load_model(paths.merged, dtype)
    answers = answer(model, load_tokenizer(paths.merged), asdict(inputs), scratch / "merged")
    merged = Measurement("transformers", scratch / "merged", **answers)
    computed = dtype_name(model)
    plain, rounds_activations = merged.logits, _stop_rounding(model)
    if rounds_activations:
        plain = scratch / "plain"
        write_logits(model, inputs.rows, plain)
    lattice = read_lattice(paths.merged)
    expected, is_rounded = {}, False
    # Formats that store the weights as they are come first: they need no other model.
    for name in sorted(formats, key=lambda name: not _is_exact(paths.merged, name)):
        if name in ("adapter", GGUF_ADAPTER):
            continue
        if name == "safetensors":
            expected[name] = Expected([plain], SUMS, SUMS, tolerance)
            continue
        if is_rounded:
            del model  # before the next is loaded
            model = load_model(paths.merged, dtype)
            _stop_rounding(model)
        logits, at_rounded = scratch / f"{name}-expected", scratch / f"{name}-rounded"
        is_rounded = not _is_exact(paths.merged, name)
        if name.startswith(COMPRESSED):
            compression = plan_compression(paths.merged, name.removeprefix(COMPRESSED))
            round_compressed(model, compression)
            write_logits(model, inputs.rows, logits)
            if not compression.rounds_inputs:
                expected[name] = Expected([logits], SUMS, SUMS, tolerance)
                continue
            rounding = rounding_tokens(model, compression)
            limits = (logits, at_rounded, tolerance, TIES)
            found = _with_limits(model, rounding, inputs, *limits)
            expected[name] = replace(found, logits=[at_rounded])
            continue
        type = name.removeprefix(GGUF)
        stored = read_storage(paths.merged, type, importance)
        if is_rounded:
            round_weights(model, type, lattice, stored)
            write_logits(model, inputs.rows, logits)
        else:
            logits = plain
        rounding = rounded_activations(model, type, stored)
        change = _tolerated_change(type, tolerance)
        expected[name] = _with_limits(model, rounding, inputs, logits, at_rounded, change)
    if GGUF_ADAPTER in formats:
        del model
        logits = scratch / f"{GGUF_ADAPTER}-expected"
        model = load_tuned(paths, load_base(paths, dtype))
        write_logits(model, inputs.rows, logits)
        type = float_type(weights_folder(paths.base))
        rounding, change = rounded_activations(model, type), _tolerated_change(type, tolerance)
        at_rounded = scratch / f"{GGUF_ADAPTER}-rounded"
        expected[GGUF_ADAPTER] = _with_limits(model, rounding, inputs, logits, at_rounded, change)
    if "adapter" in formats:
        del model
        logits = scratch / "adapter-expected"
        model = load_tuned(paths, load_quantized(paths, dtype))
        write_logits(model, inputs.rows, logits)
        expected["adapter"] = Expected([logits], SUMS, SUMS, tolerance)
        if is_quantized(paths):
            # bitsandbytes multiplies in bfloat16 on some CPUs, whatever dtype it is given.
            rounding = rounded_activations(model, "bf16")
            change = _tolerated_change("bf16", tolerance)
            at_rounded = scratch / "adapter-rounded"
            expected["adapter"] = _with_limits(model, rounding, inputs, logits, at_rounded, change)
    return Reference(merged, expected, computed, rounds_activations)


def _is_exact(merged: Path, name: str) -> bool:
    """Whether the format stores every weight of the folder `merged` as it is."""
    if name.startswith(COMPRESSED):
        return False
    return is_exact(merged, name.removeprefix(GGUF) if name.startswith(GGUF) else "f32")


def _tolerated_change(type: str, tolerance: float) -> float:
    """Relative, of perplexity, in a GGUF of `type`."""
    return min(FLOAT_TOLERANCE, tolerance) if type in FLOAT_TYPES else tolerance


def _with_limits(
    model: Any,
    rounding: AbstractContextManager[None],
    inputs: Inputs,
    logits: Path,
    at_rounded: Path,
    perplexity: float,
    times: float = ROUNDING,
) -> Expected:
    """`logits` of `model`, and what rounding of activations explains of a difference to them.

    Args:
        rounding: in this context `model` rounds its activations.
        at_rounded: where the logits with rounded activations go.
        perplexity: the relative change of perplexity that is allowed.
        times: the effect of the rounding, that a distribution may differ by.
    """
    with rounding:
        write_logits(model, inputs.rows, at_rounded)
    probe = Probe(inputs.rows, [], [], 0)
    moved = parity(probe, recorded(logits), recorded(at_rounded), [], [])
    return Expected(
        [logits, at_rounded],
        kl=SUMS + times * moved.mean_kl,
        nll=SUMS + times * moved.mean_abs_nll_diff,
        perplexity=perplexity,
    )


def _stop_rounding(model: Any) -> bool:
    """Let layers that round their inputs compute as any runtime does; whether there were any.

    Rounding of activations is noted in `quantization.json`, which only this project reads.
    """
    from torchao.quantization.qat import FakeQuantizedLinear

    rounding = {n: m for n, m in model.named_modules() if isinstance(m, FakeQuantizedLinear)}
    for name, layer in rounding.items():
        model.set_submodule(name, layer.to_linear())
    return any(layer.activation_fake_quantizer is not None for layer in rounding.values())
