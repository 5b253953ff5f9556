"""What the linear layers read on the calibration rows: static activation scales, and inputs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.models.placement import input_device

if TYPE_CHECKING:
    import torch

    from loradag.config.quantize import Quantize

INPUT_BYTES = 3 * 2**30
BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Activations:
    """The quantisation parameters of one linear layer's inputs x.

        q = round(x / (smoothing_scale · scale)) + zero_point, in int8.

    `scale` and `zero_point` have one element. `smoothing_scale` (in,), where each input channel has
    a scale of its own, is multiplied into the weight's columns, since an int8 product can apply no
    scale within a row. [SmoothQuant, arXiv:2211.10438]
    """

    scale: torch.Tensor
    zero_point: torch.Tensor | None = None
    smoothing_scale: torch.Tensor | None = None

    def qparams(self) -> dict[str, torch.Tensor]:
        """By the names of torchao's tensor; scales broadcast over (batch, tokens, channels)."""
        found = {"act_quant_scale": self.scale.reshape(1, 1, 1)}
        if self.zero_point is not None:
            found["act_quant_zero_point"] = self.zero_point.reshape(1, 1, 1)
        if self.smoothing_scale is not None:
            found["act_pre_scale"] = 1 / self.smoothing_scale
        return found


class Observer:
    """The range of a layer's inputs, over all rows that it observed.

    minmax: the smallest and largest value. percentile: the mean over the rows of each row's
    (100 − p)th and pth percentile, so that rare outliers do not set the scale.
    """

    def __init__(self, quantize: Quantize) -> None:
        self.percentile = quantize.percentile if quantize.observer == "percentile" else None
        self.by_channel = quantize.activation_granularity == "channel"
        self.lows: list[torch.Tensor] = []
        self.highs: list[torch.Tensor] = []

    def observe(self, inputs: torch.Tensor) -> None:
        """Add one row's inputs (1, tokens, channels)."""
        values = inputs.detach().float().reshape(-1, inputs.shape[-1])
        if not self.by_channel:
            values = values.reshape(-1, 1)
        if self.percentile is None:
            self.lows.append(values.amin(0))
            self.highs.append(values.amax(0))
            return
        # kthvalue: torch.quantile refuses more than 2^24 values.
        rank = max(1, round(self.percentile / 100 * len(values)))
        self.lows.append(values.kthvalue(len(values) + 1 - rank, 0).values)
        self.highs.append(values.kthvalue(rank, 0).values)

    def range(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(low, high), each (1,) or (channels,)."""
        import torch

        lows, highs = torch.stack(self.lows), torch.stack(self.highs)
        if self.percentile is None:
            return lows.amin(0), highs.amax(0)
        return lows.mean(0), highs.mean(0)


def choose_qparams(low: torch.Tensor, high: torch.Tensor, quantize: Quantize) -> Activations:
    """The parameters for inputs within [low, high]: symmetric, or asymmetric with a zero point."""
    import torch
    from torchao.quantization import MappingType, choose_qparams_affine_with_min_max

    def choose(kind: MappingType, lowest: int) -> tuple[torch.Tensor, torch.Tensor]:
        scales, zero_points = choose_qparams_affine_with_min_max(
            low, high, kind, (), torch.int8, lowest, 127, zero_point_dtype=torch.int8
        )
        return scales, zero_points

    if quantize.activation_granularity == "channel":
        scales, _ = choose(MappingType.SYMMETRIC, -127)
        return Activations(scale=torch.ones(1), smoothing_scale=scales)
    if quantize.activation_zero_point:
        scale, zero_point = choose(MappingType.ASYMMETRIC, -128)
        return Activations(scale, zero_point)
    return Activations(choose(MappingType.SYMMETRIC, -127)[0])


def calibrate(
    base: Path, folder: Path, rows: list[list[int]], quantize: Quantize
) -> dict[str, Activations]:
    """Static activation parameters by layer, from a model whose weights are quantised first."""
    with _rounded_model(base, folder, quantize) as (model, layers):
        ranges = observe_ranges(model, layers, rows, quantize)
    return {layer: choose_qparams(*ranges[layer], quantize) for layer in layers}


class LayerInputs(Mapping[str, list["torch.Tensor"]]):
    """The inputs (1, tokens, in) that each linear layer reads of each row.

    They are recorded for as many layers at a time as `INPUT_BYTES` allow, starting with the one
    that is asked for: ask for them in the order of `layers`.
    """

    def __init__(self, model: Any, layers: list[str], rows: list[list[int]]) -> None:
        self.model, self.layers, self.rows = model, layers, rows
        self.recorded: dict[str, list[torch.Tensor]] = {}

    def __getitem__(self, layer: str) -> list[torch.Tensor]:
        if layer not in self.recorded:
            self.recorded = {}  # freed before others are made
            self.recorded = {name: [] for name in self._next(layer)}
            _run(self.model, self.rows, {name: i.append for name, i in self.recorded.items()})
        return self.recorded[layer]

    def _next(self, layer: str) -> list[str]:
        """The layer and those after it whose inputs fit."""
        tokens, total = sum(map(len, self.rows)), 0
        names = self.layers[self.layers.index(layer) :]
        for count, name in enumerate(names):
            total += 4 * tokens * self.model.get_submodule(name).in_features
            if total > INPUT_BYTES and count:
                return names[:count]
        return names

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)


@contextmanager
def layer_inputs(
    base: Path, folder: Path, rows: list[list[int]], quantize: Quantize
) -> Iterator[LayerInputs]:
    """What the layers read, in such a model, too; it is loaded within the context."""
    with _rounded_model(base, folder, quantize) as (model, layers):
        yield LayerInputs(model, layers, rows)


@contextmanager
def _rounded_model(base: Path, folder: Path, quantize: Quantize) -> Iterator[tuple[Any, list[str]]]:
    """A model with weights of 8 bits, and its layers that are quantised.

    It is written to `folder` meanwhile, so that memory has no full-precision one.
    """
    import torch

    from loradag.models.loading import load_model
    from loradag.quantization.conversion import quantize_checkpoint

    weights = replace(
        quantize, scheme="symmetric", bits=8, symmetric_range="absmax", rounding="nearest"
    )
    with tempfile.TemporaryDirectory(dir=folder) as name:
        layers = [x["name"] for x in quantize_checkpoint(base, Path(name), weights)["layers"]]
        yield load_model(Path(name), torch.float32), layers


def observe_ranges(
    model: Any, layers: list[str], rows: list[list[int]], quantize: Quantize
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Run `rows` of token ids through `model`; the (low, high) that each layer's inputs had."""
    observers = {layer: Observer(quantize) for layer in layers}
    _run(model, rows, {layer: observer.observe for layer, observer in observers.items()})
    return {layer: observer.range() for layer, observer in observers.items()}


def _run(
    model: Any, rows: list[list[int]], observe: Mapping[str, Callable[[torch.Tensor], None]]
) -> None:
    """Run `rows` of token ids through `model`, and give each layer's inputs to its function.

    A function is called with a row at a time (1, tokens, in). The model reads several, padded on
    the right, which a causal model's earlier tokens do not see: a quantised weight is dequantised
    anew for each batch.
    """
    import torch

    lengths: list[int] = []

    def split(see: Callable[[torch.Tensor], None], inputs: torch.Tensor) -> None:
        for row, length in zip(inputs, lengths, strict=True):
            see(row[None, :length])

    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs, see=see: split(see, inputs[0])
        )
        for layer, see in observe.items()
    ]
    with torch.inference_mode():
        for batch in _batches(rows):
            lengths[:] = map(len, batch)
            padded = [row + [0] * (lengths[-1] - len(row)) for row in batch]
            model.base_model(torch.tensor(padded, device=input_device(model)))
    for hook in hooks:
        hook.remove()


def _batches(rows: list[list[int]]) -> Iterator[list[list[int]]]:
    """The rows by length, in batches of at most `BATCH_TOKENS`, padding included, or of one row."""
    batch: list[list[int]] = []
    for row in sorted(rows, key=len):
        if batch and (len(batch) + 1) * len(row) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    yield batch
