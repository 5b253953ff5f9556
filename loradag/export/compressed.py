"""compressed-tensors, vLLM's format of quantised checkpoints, which transformers loads as well.

Linear layers but the output layer are stored as codes q with a scale s, ŵ = s·q, and inputs x are
rounded at run time with a scale for each token, x̂ = t·r, so that products are of 8-bit numbers:

    w8a8    q = round(w / s) in int8, s = max|w| / 127 of a row      r in int8, t = max|x| / 127.5
    fp8     q = w / s in E4M3, s = max|w| / 448 of a row             r in E4M3, t = max|x| / 448
    w4a16   q = round(w / s) in int4, s = max|w| / 7 of a group      inputs as they are

Groups of w4a16 are of 128 weights of a row, of 64 or 32 where 128 does not divide every row, and of
a model that was trained on a lattice those of the lattice: 4-bit weights are then kept code for
code. The schemes are the package's own presets
(https://github.com/vllm-project/compressed-tensors), and need no calibration.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.model_files import copy_all_but_weights
from loradag.checkpoints.safetensors_reader import read_entries, read_tensors
from loradag.checkpoints.safetensors_writer import AppendingWriter
from loradag.checkpoints.skeleton import without_weights
from loradag.config.problems import LoradagError
from loradag.models.activations import changed_inputs
from loradag.models.placement import change_weight
from loradag.quantization.lattice import read_lattice

if TYPE_CHECKING:
    import torch

PRESETS = {"w8a8": "W8A8", "w4a16": "W4A16", "fp8": "FP8_DYNAMIC"}
LARGEST = {"w8a8": 127.0, "w4a16": 7.0, "fp8": 448.0}  # code
GROUP_SIZES = (128, 64, 32)  # that vLLM's kernels have


@dataclass(frozen=True)
class Compression:
    """How a model is stored.

    Attributes:
        option: `export.compressed`.
        group_size: weights of a row that share a scale; None: all of them.
        layers: that are quantised.
        ignored: linear layers that are not.
    """

    option: str
    group_size: int | None
    layers: frozenset[str]
    ignored: tuple[str, ...]

    @property
    def rounds_inputs(self) -> bool:
        """Whether runtimes round the inputs of the layers."""
        return self.option != "w4a16"

    @property
    def scheme(self) -> Any:
        """The package's `QuantizationScheme`."""
        from compressed_tensors.quantization import preset_name_to_scheme

        scheme = preset_name_to_scheme(PRESETS[self.option], ["Linear"])
        scheme.weights.group_size = self.group_size
        return scheme

    def scales(self, weight: torch.Tensor) -> torch.Tensor:
        """Of a weight (out, in): (out, in / group_size) in float32; 1 where all weights are 0."""
        size = self.group_size or weight.shape[1]
        largest = weight.float().unflatten(1, (-1, size)).abs().amax(-1)
        scales: torch.Tensor = (largest / LARGEST[self.option]).where(largest > 0, 1.0)
        return scales

    def rounded(self, weight: torch.Tensor) -> torch.Tensor:
        """What a weight (out, in) is as the checkpoint stores it, in float32."""
        scales = self.scales(weight)
        scaled = weight.float().unflatten(1, (scales.shape[1], -1)) / scales.unsqueeze(-1)
        return (_codes(scaled, self.option) * scales.unsqueeze(-1)).flatten(1)


def plan_compression(model: Path, option: str) -> Compression:
    """How the model in the folder `model` is stored; of its files it reads the config alone.

    Raises:
        LoradagError: it has no linear layer, or rows that no group size divides.
    """
    from compressed_tensors.utils import match_named_modules

    skeleton = without_weights(model)
    output = skeleton.get_output_embeddings()
    ignored = [name for name, module in skeleton.named_modules() if module is output]
    linear = dict(match_named_modules(skeleton, ["Linear"], ignored))
    if not linear:
        raise LoradagError(
            f"export.formats: compressed quantises linear layers, and {type(skeleton).__name__} "
            "has none. Take export=safetensors."
        )
    size = None
    if option == "w4a16":
        rows = {layer.in_features for layer in linear.values()}
        lattice = read_lattice(model)
        trained = [lattice.group_size] if lattice and lattice.group_size in GROUP_SIZES else []
        sizes = [size for size in (*trained, *GROUP_SIZES) if all(row % size == 0 for row in rows)]
        if not sizes:
            raise LoradagError(
                "export.compressed = w4a16: gives 128, 64 or 32 weights of a row a scale, and the "
                f"linear layers have rows of {', '.join(map(str, sorted(rows)))}. Set "
                "export.compressed=w8a8."
            )
        size = sizes[0]
    return Compression(option, size, frozenset(linear), tuple(ignored))


def write_compressed(merged: Path, folder: Path, option: str, max_shard_size: str) -> None:
    """The model in the folder `merged` as a compressed-tensors checkpoint, a tensor at a time.

    Raises:
        LoradagError: as `plan_compression`, or `merged` lacks a layer's weight.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor, ModelCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig

    compression = plan_compression(merged, option)
    missing = {f"{layer}.weight" for layer in compression.layers} - read_entries(merged).keys()
    if missing:
        raise LoradagError(
            f"export.formats: the checkpoint has no {sorted(missing)[0]}, which compressed would "
            "quantise. Take export=safetensors."
        )
    scheme = compression.scheme
    layout = infer_module_format(torch.nn.Linear, scheme).value
    compressor = BaseCompressor.get_value_from_registry(layout)
    folder.mkdir(parents=True)
    copy_all_but_weights(merged, folder)
    with AppendingWriter(folder, max_shard_size) as writer:
        for name, tensor in read_tensors(merged):
            layer = name.removesuffix(".weight")
            if layer not in compression.layers:
                writer.write(name, tensor)
                continue
            state = {"weight": tensor.float(), "weight_scale": compression.scales(tensor)}
            for part, stored in compressor.compress(state, scheme).items():
                writer.write(f"{layer}.{part}", stored)
    described = QuantizationConfig(
        config_groups={"group_0": scheme},
        format=layout,
        ignore=list(compression.ignored),
        quantization_status="compressed",
    )
    ModelCompressor(quantization_config=described).update_config(str(folder))


def round_compressed(model: Any, compression: Compression) -> None:
    """Round the weights of a transformers model in place, as its checkpoint stores them."""
    for name in compression.layers:
        change_weight(model.get_submodule(name), compression.rounded)


def rounding_tokens(model: Any, compression: Compression) -> AbstractContextManager[None]:
    """A context in which the quantised layers round each token of their inputs, as runtimes do."""

    def rounded(inputs: torch.Tensor) -> torch.Tensor:
        largest = inputs.abs().amax(-1, keepdim=True)
        # The package divides the range of codes, -128 to 127, by two.
        scale = largest / (127.5 if compression.option == "w8a8" else LARGEST["fp8"])
        return _codes(inputs / scale.where(scale > 0, 1.0), compression.option) * scale

    layers = map(model.get_submodule, compression.layers)
    return changed_inputs(dict.fromkeys(layers, rounded))


def _codes(scaled: torch.Tensor, option: str) -> torch.Tensor:
    """The nearest codes, as floats."""
    import torch

    if option == "fp8":
        largest = LARGEST["fp8"]
        return scaled.clamp(-largest, largest).to(torch.float8_e4m3fn).to(scaled.dtype)
    largest = LARGEST[option]
    return scaled.round().clamp(-largest - 1, largest)
