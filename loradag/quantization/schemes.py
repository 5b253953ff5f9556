"""Every scheme behind the same functions: config, encode, keep unquantised, decode, codebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loradag.config.quantize import BNB_SCHEMES, TORCHAO_SCHEMES
from loradag.quantization import affine, bnb

if TYPE_CHECKING:
    import torch

    from loradag.config.quantize import Quantize
    from loradag.quantization.calibration import Activations


@dataclass(frozen=True)
class Stored:
    """What a checkpoint stores of one parameter.

    Attributes:
        tensors: its saved tensors, by their key in the file.
        metadata: what torchao rebuilds its tensor from, by the parameter's name.
        information_bits: what it would take with codes packed.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    information_bits: int = 0

    @property
    def bits(self) -> int:
        return sum(8 * tensor.nbytes for tensor in self.tensors.values())


def config(quantize: Quantize, skipped: list[str]) -> Any:
    """The quantization config of the checkpoint; `skipped` are the modules left unquantised."""
    library = bnb if quantize.scheme in BNB_SCHEMES else affine
    return library.config(quantize, skipped)


def encode(
    name: str,
    weight: torch.Tensor,
    quantize: Quantize,
    activations: Activations | None = None,
    inputs: Sequence[torch.Tensor] = (),
) -> Stored:
    """Quantise the linear weight `name` (out, in), float32.

    Args:
        activations: of static_w8a8.
        inputs: of rounding by awq or gptq: what the layer reads on the calibration rows.
    """
    if quantize.scheme in BNB_SCHEMES:
        stored = Stored(bnb.encode(name, weight, quantize))
        return Stored(stored.tensors, information_bits=stored.bits)
    if quantize.is_rounded_by_inputs:
        quantized = affine.quantize_by_inputs(weight, quantize, inputs)
    elif quantize.scheme in ("symmetric", "asymmetric"):
        quantized = affine.quantize_weight(weight, quantize)
    else:
        quantized = affine.quantize_for_integers(weight, quantize, activations)
    return Stored(
        *affine.flatten(name, quantized),
        information_bits=affine.information_bits(weight, quantize),
    )


def keep(name: str, tensor: torch.Tensor, quantize: Quantize) -> Stored:
    """Store a parameter unquantised."""
    if quantize.scheme in TORCHAO_SCHEMES:
        return Stored(*affine.flatten(name, tensor))
    return Stored({name: tensor})


def decode(name: str, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> torch.Tensor:
    """The float32 weight of the saved tensors of the parameter `name`."""
    if name in tensors and len(tensors) == 1:
        return tensors[name].float()
    if name in metadata:
        return affine.decode(name, tensors, metadata)
    return bnb.decode(name, tensors)


def codebook(name: str, stored: Stored, restored: torch.Tensor, quantize: Quantize) -> torch.Tensor:
    """The values that weights of the first block of `name` can be rounded to, ascending."""
    if quantize.scheme in BNB_SCHEMES:
        return bnb.codebook(name, stored.tensors, restored, quantize)
    return affine.codebook(name, stored.tensors, quantize)
