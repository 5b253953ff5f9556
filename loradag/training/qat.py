"""Quantisation-aware training: the model learns to be right at the precision that it will have.

Forward: every linear layer of the blocks computes with weights rounded to `train.weight_bits` in
groups of `train.group_size` (`fake_quantize`), and with activations of `train.activation_bits`
where set. Backward: straight through, to full-precision masters. At the end the weights are
rounded by the same quantiser, so the converted model computes what the masters' forward pass
computed. It is an ordinary checkpoint of float weights on the quantization lattice, with the scheme
in `quantization.json`.

With an adapter (QAT-LoRA) the *effective* weight is rounded,

    y = Q(W + scale B A) x,

not W alone: an update next to a rounded W would leave the lattice when it is merged, and no
step has trained for rounding it then. So the result is again a full checkpoint, and what is merged
and exported is what was trained. It costs the product B A a layer a step, and the memory of one
effective weight a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torchao.quantization.qat import FakeQuantizedLinear

from loradag.checkpoints.model_files import NOTE
from loradag.config.problems import LoradagError
from loradag.config.train import Train
from loradag.models.activations import inner_linears
from loradag.quantization.fake_quantize import fake_quantized, round_weight
from loradag.runtime import write_json


class QuantizedSum(LoraLinear):
    """peft's layer on a `FakeQuantizedLinear`: y = Q(W + scale B A) x + bias.

    Dropout is on the input of the update alone, so it adds scale B A (dropout(x) - x) to that.
    """

    def forward(self, x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        (name,) = self.active_adapters
        base = self.base_layer
        if base.activation_fake_quantizer is not None:
            x = base.activation_fake_quantizer(x)
        effective = base.weight_fake_quantizer(base.weight + self.get_delta_weight(name))
        y = torch.nn.functional.linear(x, effective, base.bias)
        dropout = self.lora_dropout[name]
        if self.training and isinstance(dropout, torch.nn.Dropout):
            noise = self.lora_B[name](self.lora_A[name](dropout(x) - x))
            y = y + noise * self.scaling[name]
        return y


LAYERS = {FakeQuantizedLinear: QuantizedSum}  # what an adapter makes of a fake-quantised layer


def fake_quantize(model: Any, train: Train) -> Any:
    """`model` with every linear layer of its blocks fake-quantised, on the same parameters.

    Raises:
        LoradagError: rows do not divide into groups.
    """
    assert train.weight_bits
    assert train.group_size
    for name, linear in inner_linears(model).items():
        if linear.in_features % train.group_size:
            raise LoradagError(
                f"train.group_size = {train.group_size}: {name} has rows of {linear.in_features} "
                "weights, which do not divide into such groups. Choose a divisor."
            )
        quantized = fake_quantized(
            linear, train.weight_bits, train.group_size, activation_bits=train.activation_bits
        )
        model.set_submodule(name, quantized)
    return model


def check_adapted_layers(tuned: Any) -> Any:
    """The `PeftModel` as it is.

    Raises:
        LoradagError: it adapts what is not quantised, so merging would not be what was trained.
    """
    for name, module in tuned.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, QuantizedSum):
            raise LoradagError(
                f"adapter.target_modules: {name} stays at full precision under train.method = qat. "
                "Target layers inside the blocks only, or take train=sft."
            )
    return tuned


@torch.no_grad()
def convert(model: Any) -> Any:
    """The trained model, adapter merged, with ordinary linear layers whose weights are rounded.

    Activations are rounded no more: the loader does that, by the note that `save` leaves.
    """
    merged = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    for name, quantized in inner_linears(merged).items():
        merged.set_submodule(name, round_weight(quantized).to_linear())
    return merged


def save(model: Any, folder: Path, train: Train) -> None:
    """Convert, and write the full checkpoint with its `quantization.json`."""
    convert(model).save_pretrained(folder)
    scheme = {
        "scheme": "symmetric",
        "bits": train.weight_bits,
        "group_size": train.group_size,
        "activation_bits": train.activation_bits,
    }
    write_json(folder / NOTE, scheme)
