"""Uniform n-bit quantisation through torchao: ŵ = s·(q − z), in blocks that share s and z.

symmetric:   absmax (`absmax`): s = max|w| / (2^(b−1) − 1), z = 0,    q in ±(2^(b−1) − 1)
  `minmax`:  s = (max w − min w) / (2^b − 1),      z = 0,              q in [−2^(b−1), 2^(b−1) − 1]
asymmetric:  s = (max w − min w) / (2^b − 1),      z = −2^(b−1) − round(min w / s), same range;
             min and max are taken with 0, so that 0 is represented exactly.

q = round(w / s) + z, clamped. A block is the tensor, a channel (a row of the weight), or a group of
`group_size` neighbours in a row. `minmax` does not reach max|w| and clips; it is for comparison.

Rounding by `awq` multiplies the columns of a weight by scales p, ŵ = s·(q − z) / p, and divides the
inputs by them, so that columns which meet large inputs lose less. Of p = mean|x|^a that exponent a
in 0, 0.05 … 0.95 is taken with which the outputs on the calibration rows have the least error.
[AWQ, arXiv:2306.00978] Rounding by `gptq` keeps the formulas, and chooses codes by those outputs:
see `gptq.py`.

W8A8: weights as symmetric 8-bit; activations rounded to int8 as well, with scales from each token
(dynamic) or from calibration (static), so that products are of integers.
[Jacob et al., arXiv:1712.05877; SmoothQuant's smoothing scales, arXiv:2211.10438]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loradag.quantization.absmax import choose_absmax_qparams, largest_code

if TYPE_CHECKING:
    import torch

    from loradag.config.quantize import Quantize
    from loradag.quantization.calibration import Activations


def config(quantize: Quantize, skipped: list[str]) -> Any:
    """The quantization section of `config.json`: codes are stored in int8, whatever their bits."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    integer_activations = quantize.scheme in ("dynamic_w8a8", "static_w8a8")
    kind = Int8DynamicActivationInt8WeightConfig if integer_activations else Int8WeightOnlyConfig
    return TorchAoConfig(kind(), modules_to_not_convert=skipped)


def choose_scales(
    weight: torch.Tensor, block: tuple[int, int], quantize: Quantize
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points, float32 and int8, of shape (out / block[0], in / block[1])."""
    import torch
    from torchao.quantization import MappingType, choose_qparams_affine

    if quantize.scheme != "asymmetric" and quantize.symmetric_range != "minmax":
        return choose_absmax_qparams(weight, block, bits(quantize))
    lowest, highest = code_range(quantize)
    scales, zero_points = choose_qparams_affine(
        weight,
        MappingType.ASYMMETRIC,
        block,
        torch.int8,
        lowest,
        highest,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int8,
        keepdim=True,
    )
    return scales, zero_points if quantize.scheme == "asymmetric" else zero_points.zero_()


def quantize_weight(weight: torch.Tensor, quantize: Quantize) -> Any:
    """The torchao tensor of a weight (out, in) in float32, each rounded by itself."""
    return _with_qparams(
        weight, quantize, *choose_scales(weight, block_of(weight, quantize), quantize)
    )


def _with_qparams(
    weight: torch.Tensor, quantize: Quantize, scales: torch.Tensor, zero_points: torch.Tensor
) -> Any:
    import torch
    from torchao.quantization import IntxUnpackedToInt8Tensor

    return IntxUnpackedToInt8Tensor.from_hp(
        weight,
        block_of(weight, quantize),
        getattr(torch, f"int{bits(quantize)}"),
        intx_choose_qparams_algorithm=None,
        custom_scale=scales,
        custom_zero_point=zero_points,
    )


def quantize_by_inputs(
    weight: torch.Tensor, quantize: Quantize, inputs: Sequence[torch.Tensor]
) -> Any:
    """The torchao tensor of a weight (out, in) in float32 whose outputs on `inputs` lose little.

    Args:
        inputs: (1, tokens, in) each, of the calibration rows.
    """
    by = {"awq": _quantize_by_awq, "gptq": _quantize_by_gptq}
    return by[str(quantize.rounding)](weight, quantize, inputs)


def _quantize_by_gptq(
    weight: torch.Tensor, quantize: Quantize, inputs: Sequence[torch.Tensor]
) -> Any:
    from loradag.quantization.gptq import compensate

    rows, columns = block_of(weight, quantize)
    lowest, highest = code_range(quantize)
    scales, zero_points = choose_scales(weight, (rows, columns), quantize)

    def round_column(column: torch.Tensor, number: int) -> torch.Tensor:
        scale, zero_point = (
            part[:, number // columns].float().repeat_interleave(rows)
            for part in (scales, zero_points)
        )
        codes = ((column / scale).round() + zero_point).clamp(lowest, highest)
        return scale * (codes - zero_point)

    return _with_qparams(compensate(weight, inputs, round_column), quantize, scales, zero_points)


def _quantize_by_awq(
    weight: torch.Tensor, quantize: Quantize, inputs: Sequence[torch.Tensor]
) -> Any:
    import torch
    from torchao.quantization import Int8Tensor

    from loradag.compat.torchao import search_input_scales

    scales = search_input_scales(
        weight, inputs, lambda scaled: quantize_weight(scaled, quantize).dequantize()
    )
    # Rounded, so that a model that computes in 16 bits divides by the very same numbers.
    pre_scale = (1 / scales).to(torch.bfloat16).float()
    quantized = quantize_weight(weight / pre_scale, quantize)
    return Int8Tensor(
        quantized.qdata,
        quantized.scale,
        list(quantized.block_size),
        weight.dtype,
        zero_point=quantized.zero_point,
        act_pre_scale=pre_scale,
    )


def quantize_for_integers(
    weight: torch.Tensor, quantize: Quantize, activations: Activations | None
) -> Any:
    """The torchao tensor of a weight (out, in) that multiplies int8 activations."""
    from torchao.quantization import Int8Tensor, MappingType, PerRow, PerTensor

    from loradag.compat.torchao import activation_options

    static = {}
    if activations is not None:
        static = activations.qparams()
        if activations.smoothing_scale is not None:
            weight = weight * activations.smoothing_scale
    asymmetric = activations is not None and activations.zero_point is not None
    scales, _ = choose_scales(weight, block_of(weight, quantize), quantize)
    return Int8Tensor.from_hp(
        weight,
        PerTensor() if quantize.granularity == "tensor" else PerRow(),
        scale=scales,
        act_quant_kwargs=activation_options(
            PerRow() if activations is None else PerTensor(),
            MappingType.ASYMMETRIC if asymmetric else MappingType.SYMMETRIC,
        ),
        **static,
    )


def flatten(name: str, tensor: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """A torchao or plain tensor in its saved form: tensors, and metadata under its name."""
    from loradag.compat.torchao import flatten_tensor

    return flatten_tensor(name, tensor)


def decode(name: str, stored: dict[str, torch.Tensor], metadata: dict[str, str]) -> torch.Tensor:
    """The float32 weight (out, in) of the saved tensors of `name`."""
    from loradag.compat.torchao import unflatten_tensor

    quantized = unflatten_tensor(name, stored, metadata)
    weight: torch.Tensor = quantized.dequantize().float()
    # The inputs are multiplied by it, which is the inverse of the smoothing scale in the weight.
    pre_scale = getattr(quantized, "act_pre_scale", None)
    return weight if pre_scale is None else weight * pre_scale


def codebook(name: str, stored: dict[str, torch.Tensor], quantize: Quantize) -> torch.Tensor:
    """The values that weights of the first block are rounded to: s·(q − z) for every code q."""
    import torch

    part = f"{name.removesuffix('weight')}_weight_"
    scale, zero_point = (
        stored[f"{part}scale"].flatten()[0],
        stored[f"{part}zero_point"].flatten()[0],
    )
    lowest, highest = code_range(quantize)
    codes = torch.arange(lowest, highest + 1, device=scale.device)
    return scale * (codes - zero_point)


def code_range(quantize: Quantize) -> tuple[int, int]:
    """The lowest and highest code, signed."""
    highest = largest_code(bits(quantize))
    spans_range = quantize.scheme == "asymmetric" or quantize.symmetric_range == "minmax"
    return (-highest - 1 if spans_range else -highest), highest


def block_of(weight: torch.Tensor, quantize: Quantize) -> tuple[int, int]:
    """(rows, columns) of the weights that share a scale."""
    rows, columns = weight.shape
    if quantize.granularity == "tensor":
        return rows, columns
    return 1, columns if quantize.granularity == "channel" else int(quantize.group_size or 0)


def bits(quantize: Quantize) -> int:
    return 8 if quantize.bits is None else quantize.bits


def information_bits(weight: torch.Tensor, quantize: Quantize) -> int:
    """The bits that `weight` would take if codes were packed and zeros not written.

    torchao keeps each code in a byte, and a zero point also where it is 0.
    """
    rows, columns = block_of(weight, quantize)
    blocks = weight.numel() // (rows * columns)
    zero_point = bits(quantize) if quantize.scheme == "asymmetric" else 0
    # Without the scales of the columns a weight cannot be decoded.
    column_scale = 16 if quantize.rounding == "awq" else 0
    column_scale += 32 if quantize.activation_granularity == "channel" else 0
    column_scales = column_scale * weight.shape[1]
    return weight.numel() * bits(quantize) + blocks * (32 + zero_point) + column_scales
