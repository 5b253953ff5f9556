"""What each exported format should compute, computed in transformers in float32.

safetensors: the merged model. GGUF: the merged model with its weights as the type stores them. An
adapter: the model as trained. What a runtime may differ by is measured as well: by letting the
expected model round its activations as llama.cpp does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loradag.evaluation.parity import Probe, comparison_dtype, dtype_name, parity, recorded
from loradag.export.gguf_format import (
    FLOAT_TYPES,
    Stored,
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
FLOAT_TOLERANCE = 1e-3  # relative, of perplexity and of a token's NLL: no weight is rounded
# A distribution may differ by this many times what the rounding of activations makes of it: another
# order of sums rounds other activations.
ROUNDING = 4
SUMS = 1e-6  # nats of KL, and nats of NLL, that the order of float32 sums explains


@dataclass(frozen=True)
class Expected:
    """What a format should compute, and by how much it may differ.

    Attributes:
        logits: folders of a file a row: the model's, and for GGUF the model's with rounded
            activations. Runtimes on a CPU compute the second, others the first or another rounding.
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
    # Types that store the weights as they are come first: they need no other model.
    for name in sorted(formats, key=lambda name: not is_exact(paths.merged, _type(name))):
        type = _type(name)
        if name in ("adapter", GGUF_ADAPTER):
            continue
        if not name.startswith(GGUF):
            expected[name] = Expected([plain], SUMS, SUMS, tolerance)
            continue
        logits, stored = plain, read_storage(paths.merged, type, importance)
        if not is_exact(paths.merged, type):
            if is_rounded:
                del model  # before the next is loaded
                model = load_model(paths.merged, dtype)
                _stop_rounding(model)
            round_weights(model, type, lattice, stored)
            is_rounded = True
            logits = scratch / f"{name}-expected"
            write_logits(model, inputs.rows, logits)
        limits = (tolerance, scratch / f"{name}-rounded", stored)
        expected[name] = _with_limits(model, type, inputs, logits, *limits)
    if GGUF_ADAPTER in formats:
        del model
        logits = scratch / f"{GGUF_ADAPTER}-expected"
        model = load_tuned(paths, load_base(paths, dtype))
        write_logits(model, inputs.rows, logits)
        type = float_type(weights_folder(paths.base))
        limits = (tolerance, scratch / f"{GGUF_ADAPTER}-rounded", None)
        expected[GGUF_ADAPTER] = _with_limits(model, type, inputs, logits, *limits)
    if "adapter" in formats:
        del model
        logits = scratch / "adapter-expected"
        model = load_tuned(paths, load_quantized(paths, dtype))
        write_logits(model, inputs.rows, logits)
        expected["adapter"] = Expected([logits], SUMS, SUMS, tolerance)
        if is_quantized(paths):
            # bitsandbytes multiplies in bfloat16 on some CPUs, whatever dtype it is given.
            limits = (tolerance, scratch / "adapter-rounded", None)
            expected["adapter"] = _with_limits(model, "bf16", inputs, logits, *limits)
    return Reference(merged, expected, computed, rounds_activations)


def _type(name: str) -> str:
    return name.removeprefix(GGUF) if name.startswith(GGUF) else "f32"


def _with_limits(
    model: Any,
    type: str,
    inputs: Inputs,
    logits: Path,
    tolerance: float,
    at_rounded: Path,
    stored: Stored | None,
) -> Expected:
    """`logits` of `model`, and what rounding of activations explains of a difference to them.

    Args:
        at_rounded: where the logits with rounded activations go.
    """
    with rounded_activations(model, type, stored):
        write_logits(model, inputs.rows, at_rounded)
    probe = Probe(inputs.rows, [], [], 0)
    moved = parity(probe, recorded(logits), recorded(at_rounded), [], [])
    relative = min(FLOAT_TOLERANCE, tolerance) if type in FLOAT_TYPES else tolerance
    return Expected(
        [logits, at_rounded],
        kl=SUMS + ROUNDING * moved.mean_kl,
        nll=SUMS + ROUNDING * moved.mean_abs_nll_diff,
        perplexity=relative,
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
