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


def record_inputs(
    base: Path, folder: Path, rows: list[list[int]], quantize: Quantize
) -> dict[str, list[torch.Tensor]]:
    """The inputs (1, tokens, in) of each layer for each row, from such a model, too.

    Layers that read the same tensor share it, so of a Llama with hidden size h, MLP size m and l
    blocks they take 4·tokens·l·(3·h + m) bytes.
    """
    with _rounded_model(base, folder, quantize) as (model, layers):
        inputs: dict[str, list[torch.Tensor]] = {layer: [] for layer in layers}
        _run(model, rows, {layer: seen.append for layer, seen in inputs.items()})
    return inputs


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
    """Run `rows` of token ids through `model`, and give each layer's inputs to its function."""
    import torch

    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, inputs, see=see: see(inputs[0])
        )
        for layer, see in observe.items()
    ]
    with torch.inference_mode():
        for ids in rows:
            model.base_model(torch.tensor([ids], device=input_device(model)))
    for hook in hooks:
        hook.remove()
