"""The section `quantize` of a scheme, and weights to try it on."""

import dataclasses
from typing import Any

import torch

from loradag.config.quantize import Quantize

NONE = {field.name: None for field in dataclasses.fields(Quantize)}
SCHEMES = {
    "nf4": {"double_quant": True, "block_size": 64},
    "fp4": {"double_quant": True, "block_size": 64},
    "int8": {"threshold": 6.0},
    "symmetric": {
        "bits": 4,
        "granularity": "channel",
        "symmetric_range": "absmax",
        "rounding": "nearest",
    },
    "asymmetric": {"bits": 4, "granularity": "group", "group_size": 32, "rounding": "nearest"},
    "dynamic_w8a8": {"granularity": "channel"},
    "static_w8a8": {
        "granularity": "channel",
        "observer": "minmax",
        "activation_granularity": "tensor",
        "activation_zero_point": True,
        "calibration_rows": 4,
    },
}


def options(scheme: str, **changes: Any) -> Quantize:
    values = {**NONE, "skip_modules": [], **SCHEMES[scheme], **changes}
    return Quantize(**{**values, "scheme": scheme})


def weights(kind: str, rows: int = 48, columns: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(rows, columns, generator=generator) * 0.02
    if kind == "outlier":
        normal[3, 5] = 4.0
    return {
        "normal": normal,
        "outlier": normal,
        "skewed": normal.abs(),
        "constant": torch.full((rows, columns), 0.3),
        "zero": torch.zeros(rows, columns),
        "huge": normal * 1e30,
        "tiny": normal * 1e-30,
    }[kind]
