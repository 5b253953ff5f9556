"""Where and in what precision a model computes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from loradag.config.problems import LoradagError
from loradag.runtime.environment import DEVICE

if TYPE_CHECKING:
    import torch


def device() -> str:
    """The torch device: `cuda` if there is one, `mps` on a Mac, else `cpu`.

    Raises:
        LoradagError: `runtime.device` names a device that this machine does not have.
    """
    import torch

    asked = os.environ.get(DEVICE, "auto")
    available = [
        name
        for name, found in {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
            "cpu": True,
        }.items()
        if found
    ]
    if asked == "auto":
        return available[0]
    if asked not in available:
        raise LoradagError(
            f"runtime.device = {asked!r}: this machine has {', '.join(available)}. Set "
            "runtime.device=auto."
        )
    return asked


def compute_dtype(name: str) -> torch.dtype:
    """The torch dtype of an option; `auto` is what the device computes natively.

    On a CPU without bfloat16 instructions a bfloat16 product is several times slower than a
    float32 one, so there `auto` is float32.
    """
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device() == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device() == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16"):
        return torch.bfloat16
    return torch.float32
