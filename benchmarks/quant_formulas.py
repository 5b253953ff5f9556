"""The guide's formulas beside the right ones, on every linear layer of the base.

dvc repro fetch
python -m benchmarks.quant_formulas
"""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.config.composition import compose, plain
from loradag.config.quantize import Quantize
from loradag.config.validation import validate
from loradag.runtime import Paths

if TYPE_CHECKING:
    import torch

BITS = (8, 4)
GRANULARITIES = {"tensor": None, "channel": None, "group": 64}


def as_the_guide_writes(weight: "torch.Tensor", quantize: Quantize) -> "torch.Tensor":
    """step = (max − min) / (2^b − 1), Z = 0, codes 0 to 2^b − 1: what is negative becomes 0."""
    from loradag.quantization.affine import block_of

    blocks = weight.reshape(-1, math.prod(block_of(weight, quantize)))
    levels = 2 ** int(quantize.bits or 0) - 1
    step = (blocks.amax(1, True) - blocks.amin(1, True)) / levels
    return ((blocks / step).round().clamp(0, levels) * step).reshape(weight.shape)


def restore(weight: "torch.Tensor", quantize: Quantize) -> "torch.Tensor":
    from loradag.quantization.affine import quantize_weight

    restored: torch.Tensor = quantize_weight(weight, quantize).dequantize()
    return restored


def main() -> None:
    from transformers import AutoConfig

    from loradag.checkpoints.safetensors_reader import read_tensors
    from loradag.models.pinning import weights_folder
    from loradag.quantization.conversion import linear_layers
    from loradag.quantization.errors import Error, compare

    folder = weights_folder(Paths(Path()).base)
    linear, _ = linear_layers(AutoConfig.from_pretrained(folder), [])
    plainly = validate(plain(compose(["quantize=symmetric"]))).quantize
    formulas = {
        "(max − min) / (2^b − 1), codes from 0, as written": (as_the_guide_writes, {}),
        "the same step, signed codes (`minmax`)": (restore, {"symmetric_range": "minmax"}),
        "symmetric, max\\|w\\|": (restore, {}),
        "asymmetric": (restore, {"scheme": "asymmetric"}),
    }
    totals: dict[tuple[str, int, str], Error] = {}
    for name, tensor in read_tensors(folder):
        if name.removesuffix(".weight") not in linear:
            continue
        weight = tensor.float()
        for formula, (function, changes) in formulas.items():
            for bits in BITS:
                for granularity, size in GRANULARITIES.items():
                    quantize = dataclasses.replace(
                        plainly, bits=bits, granularity=granularity, group_size=size, **changes
                    )
                    key = formula, bits, granularity
                    error = compare(weight, function(weight, quantize))
                    totals[key] = totals.get(key, Error()) + error
    columns = [(bits, granularity) for bits in BITS for granularity in GRANULARITIES]
    print("| SQNR, dB |" + "".join(f" {bits} bits, {place} |" for bits, place in columns))
    print("|---" + "|---:" * len(columns) + "|")
    for formula in formulas:
        cells = [f"{totals[(formula, *column)].sqnr_db:.1f}" for column in columns]
        print(f"| {formula} | {' | '.join(cells)} |")
    written, _, absmax, _ = formulas
    ratio = totals[(written, 8, "channel")].rmse / totals[(absmax, 8, "channel")].rmse
    print(f"\nRMSE as written, over that of max|w|, at 8 bits by channel: {ratio:.0f}")


if __name__ == "__main__":
    main()
