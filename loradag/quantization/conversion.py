"""A base checkpoint into a quantised one, a tensor at a time.

Of the base and of the result, one tensor is in memory. What is saved is what transformers' own
`save_pretrained` writes, so `from_pretrained` loads it without quantising again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.safetensors_reader import count_parameters, read_entries, read_tensors
from loradag.checkpoints.safetensors_writer import AppendingWriter, is_finite
from loradag.config.problems import LoradagError
from loradag.models.device import device
from loradag.quantization import schemes
from loradag.quantization.errors import Error, compare
from loradag.quantization.histogram import Histogram
from loradag.runtime.report_keys import LayerErrors, QuantizedWeights

if TYPE_CHECKING:
    import torch

    from loradag.config.quantize import Quantize
    from loradag.quantization.calibration import Activations


def quantize_checkpoint(
    base: Path,
    folder: Path,
    options: Quantize,
    activations: Mapping[str, Activations] | None = None,
    inputs: Mapping[str, Sequence[torch.Tensor]] | None = None,
) -> QuantizedWeights:
    """Quantise the linear layers of `base` into `folder`; return size and error, for the report.

    Args:
        base: a folder of safetensors and `config.json`.
        folder: an empty one.
        options: the scheme.
        activations: static activation scales by layer.
        inputs: of rounding by awq or gptq: what each layer reads on the calibration rows.

    Raises:
        LoradagError: no layer to quantise, a group size that divides no row, or weights that are
            not finite.
    """
    import torch
    from rich.progress import track
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    linear, skipped = linear_layers(config, options.skip_modules)
    check_shapes(base, linear, options)
    entries = read_entries(base)
    layers: list[LayerErrors] = []
    histogram = None
    total, bits, information_bits = Error(), 0, 0
    with AppendingWriter(folder) as writer:
        for name, tensor in track(read_tensors(base), "quantize", total=len(entries)):
            if not is_finite(tensor):
                raise LoradagError(
                    f"{name}: has weights that are NaN or infinite, so the base is broken. Fetch "
                    "another one."
                )
            layer = name.removesuffix(".weight")
            if layer in linear:
                weight = tensor.to(device(), torch.float32)
                qparams = activations[layer] if activations else None
                seen = inputs[layer] if inputs else ()
                stored = schemes.encode(name, weight, options, qparams, seen)
                restored = schemes.decode(name, stored.tensors, stored.metadata)
                error = compare(weight, restored)
                layers.append({"name": layer, **error.as_dict()})
                if histogram is None:
                    codebook = schemes.codebook(name, stored, restored, options)
                    histogram = Histogram.of(layer, weight, codebook)
                total += error
                bits += stored.bits
                information_bits += stored.information_bits
            else:
                stored = schemes.keep(name, tensor, options)
            for key, value in stored.tensors.items():
                writer.write(key, value)
            writer.metadata |= stored.metadata
        if writer.metadata:
            writer.metadata["tensor_names"] = json.dumps(list(writer.metadata))
    config.quantization_config = schemes.config(options, skipped).to_dict()
    config.save_pretrained(folder)
    if (base / "generation_config.json").exists():
        GenerationConfig.from_pretrained(base).save_pretrained(folder)
    parameters = count_parameters(base)
    return {
        "parameters": parameters,
        "quantized_parameters": total.count,
        "bits_per_weight": bits / total.count,
        "information_bits_per_weight": information_bits / total.count,
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "bytes_full": 2 * parameters,
        "layers": layers,
        "histogram": histogram.as_dict() if histogram else None,
        "rmse": total.rmse,
        "sqnr_db": total.sqnr_db,
    }


def linear_layers(config: Any, skip_modules: list[str]) -> tuple[set[str], list[str]]:
    """The layers to quantise, and the modules to skip, as transformers chooses them.

    Those are all linear layers but the output layer, what is tied to it, and `skip_modules`.

    Raises:
        LoradagError: `skip_modules` has a name that no linear layer has, or leaves no layer; or the
            model has none (GPT-2).
    """
    import torch
    from transformers import AutoModelForCausalLM

    from loradag.compat.transformers import is_quantizable, skipped_modules

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    names = {name for name, module in model.named_modules() if type(module) is torch.nn.Linear}
    for skip in skip_modules:
        if all(is_quantizable(name, [skip]) for name in names):
            endings = sorted({name.rpartition(".")[2] for name in names})
            raise LoradagError(
                f"quantize.skip_modules: no linear layer is called {skip!r}. They end in "
                f"{', '.join(endings)}."
            )
    if not any(is_quantizable(name, skipped_modules(model, [])) for name in names):
        raise LoradagError(
            f"quantize.scheme: the layers of {type(model).__name__} are "
            f"{', '.join(_classes_with_matrices(model))}, not Linear, which alone the schemes "
            "quantise. Take quantize=none."
        )
    skipped = skipped_modules(model, skip_modules)
    linear = {name for name in names if is_quantizable(name, skipped)}
    if not linear:
        raise LoradagError(
            f"quantize.skip_modules = {skip_modules}: leaves no linear layer to quantise. Name "
            "fewer modules, or take quantize=none."
        )
    return linear, skipped


def _classes_with_matrices(model: Any) -> list[str]:
    """Of what multiplies by a matrix, if not of embeddings and the output layer."""
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    kinds = {
        type(module).__name__ for module in model.modules()
        if module not in ends and getattr(getattr(module, "weight", None), "ndim", 0) > 1
    }  # fmt: skip
    return sorted(kinds - {"Embedding"})


def check_shapes(base: Path, linear: set[str], options: Quantize) -> None:
    """Refuse before any work what would fail on the way.

    Raises:
        LoradagError: a layer that the checkpoint lacks, or whose rows the group size does not
            divide.
    """
    entries = read_entries(base)
    shapes = {name.removesuffix(".weight"): entry.shape for name, entry in entries.items()}
    if missing := sorted(linear - shapes.keys()):
        raise LoradagError(
            f"the base's weights lack {len(missing)} of its linear layers, such as {missing[0]}. "
            "Save it anew with `save_pretrained`."
        )
    if options.granularity != "group":
        return
    size = int(options.group_size or 0)
    rows = {shapes[layer][1] for layer in linear}
    if any(row % size for row in rows):
        fitting = math.gcd(*rows)
        raise LoradagError(
            f"quantize.group_size = {size}: does not divide every row of the layers to quantise; "
            f"they have {', '.join(map(str, sorted(rows)))} weights. Use a divisor of {fitting}."
        )
    if options.rounding == "awq" and size in rows:
        raise LoradagError(
            f"quantize.group_size = {size}: is a full row of a layer, and quantize.rounding = awq "
            "is for groups within rows. Use half of it."
        )


def measure_unquantized(base: Path) -> QuantizedWeights:
    """The size of the base as it is stored, for the report of `quantize=none`."""
    entries = read_entries(base).values()
    stored = sum(entry.bytes for entry in entries)
    parameters = sum(entry.elements for entry in entries)
    return {
        "parameters": parameters,
        "quantized_parameters": 0,
        "bits_per_weight": 8 * stored / parameters,
        "bytes": stored,
        "bytes_full": 2 * parameters,
        "rmse": 0.0,
        "layers": [],
    }
