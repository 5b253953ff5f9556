"""What some introductions call QLoRA: the adapter's own A and B are quantised, not the base alone.

    W' = W + scale Q(B) Q(A),    Q: symmetric absmax with a scale a row.

The masters of A and B train in full precision, Q is in the forward pass (`fake_quantize`). What is
saved are Q(A) and Q(B), so peft loads and merges what training computed at its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from loradag.config.adapter import Adapter
from loradag.quantization.fake_quantize import fake_quantized, round_weight
from loradag.training.lora import save_adapter


def quantize_adapter(tuned: Any, adapter: Adapter) -> Any:
    """The `PeftModel` with A and B of every adapted layer fake-quantised to `adapter.bits`."""
    assert adapter.bits
    for factors, name in list(_factors(tuned)):
        factors[name] = fake_quantized(factors[name], adapter.bits)
    return tuned


def save_quantized_adapter(tuned: Any, folder: Path, state: Path, base: str) -> None:
    """Round A and B of a trained model, in place, and write them; see `save_adapter`."""
    for factors, name in _factors(tuned):
        round_weight(factors[name])
    save_adapter(tuned, folder, state, base)


def _factors(tuned: Any) -> Iterator[tuple[torch.nn.ModuleDict, str]]:
    """Each A and B of the model, as its container and its name there."""
    from peft.tuners.lora import LoraLayer

    for module in tuned.modules():
        if isinstance(module, LoraLayer):
            for factors in (module.lora_A, module.lora_B):
                yield from ((factors, name) for name in factors)
