"""BitNet b1.58 (https://arxiv.org/abs/2402.17764), on transformers' own layers.

Of a weight matrix W (out, in) and each token's input x,

    gamma = mean|W|,             T = RoundClip(W / gamma, -1, 1),      W' = gamma T,
    s = 127 / max|x|,            q = RoundClip(s x, -128, 127),        x' = q / s,

so that y = W' x' is a sum of int8 values with signs, scaled once by gamma / s. Every linear layer
but the output layer is one such. Masters of W train in full precision, the gradient goes straight
through both roundings. What is saved is T, four to a byte, with 1 / gamma: the form that
transformers loads and llama.cpp's converter reads.

The paper's RMSNorm before each layer would need weights that Llama's other runtimes have no place
for; scaling by the token's maximum makes the layer indifferent to the input's size anyway.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BitNetQuantConfig

from loradag.compat.bit_linear import CODES_PER_BYTE, pack, ternary_layers
from loradag.config.problems import LoradagError
from loradag.models.loading import load_model


def load_masters(folder: Path, attention: str = "auto") -> Any:
    """The model of `folder` with ternary layers, float32 masters under them, all trainable.

    Raises:
        LoradagError: a layer that cannot be packed.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    # transformers quantises no model for BitNet by itself: it must read that this one is.
    config.quantization_config = BitNetQuantConfig(
        linear_class="autobitlinear", quantization_mode="online"
    ).to_dict()
    model = load_model(folder, torch.float32, attention, to_train=True, config=config)
    for name, layer in ternary_layers(model).items():
        if layer.out_features % CODES_PER_BYTE:
            raise LoradagError(
                f"train.method = bitnet: {name} has {layer.out_features} rows, which do not pack "
                f"{CODES_PER_BYTE} to a byte. Take another model, or train=qat."
            )
    return model


def ternary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """T in {-1, 0, 1} of the shape of `weight`, and 1 / gamma, shape (1,), as transformers rounds.

    W' = T / (1 / gamma): the layers that load them divide by it.
    """
    inverse = 1.0 / weight.float().abs().mean().clamp(min=1e-5)
    return (weight * inverse).round().clamp(-1, 1), inverse.reshape(1)


def save(model: Any, folder: Path) -> None:
    """Write the ternary model: packed weights, their scales, all else in full precision."""
    from huggingface_hub import save_torch_state_dict

    layers = ternary_layers(model)
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name, layer in layers.items():
        codes, inverse = ternary(layer.weight.detach())
        state[f"{name}.weight"] = pack(codes)
        state[f"{name}.weight_scale"] = inverse
    config = model.config
    config.quantization_config = BitNetQuantConfig(modules_to_not_convert=_others(model)).to_dict()
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    save_torch_state_dict(state, folder, metadata={"format": "pt"})


def _others(model: Any) -> list[str]:
    """Linear layers that are not ternary."""
    linears = {name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return sorted(linears - set(ternary_layers(model)))
