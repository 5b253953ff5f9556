"""transformers' BitNet layers, and the packed form that they load.

Why: `BitNetQuantConfig` is public, the layers that it makes and their packing are not; training
must find the layers, and saving must write the form that transformers and llama.cpp's converter
read. Holds for transformers 5.23. Unnecessary once `save_pretrained` packs a model that was trained
with `quantization_mode="online"`.
"""

import torch
from transformers.integrations.bitnet import VALUES_PER_ITEM, AutoBitLinear, pack_weights

CODES_PER_BYTE: int = VALUES_PER_ITEM


def ternary_layers(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """The layers with ternary weights, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, AutoBitLinear)}


def pack(codes: torch.Tensor) -> torch.Tensor:
    """Codes in {-1, 0, 1} of shape (out, in) as bytes of shape (out / 4, in), four to a byte."""
    packed: torch.Tensor = pack_weights(codes)
    return packed
