"""Layers that round their inputs to 8 bits, and the file of a checkpoint that asks for it.

Weights on a quantisation lattice are ordinary floats in an ordinary checkpoint; rounding of
activations is a computation, which no stored number shows. So `quantization.json` records it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.model_files import NOTE

if TYPE_CHECKING:
    import torch


def inner_linears(model: Any) -> dict[str, torch.nn.Linear]:
    """The linear layers inside the blocks by name: all but the output layer.

    The output layer often shares its weights with the embedding, which is a table, not a product.
    """
    import torch

    output = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not output
    }


def rounding_inputs(linear: Any, bits: int | None) -> Any:
    """`linear`, on the same parameters, as torchao's layer that fake-quantises what it is given.

    8 bits: asymmetric, a range a token, found at run time; None: inputs stay as they are.
    """
    import torch
    from torchao.quantization.qat import FakeQuantizedLinear, IntxFakeQuantizeConfig

    per_token = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    return FakeQuantizedLinear.from_linear(linear, activation_config=per_token if bits else None)


@contextmanager
def changed_inputs(changes: Mapping[Any, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """A context in which a module of `changes` takes what its function makes of its input."""

    def hook(change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        return lambda _, inputs: (change(inputs[0]), *inputs[1:])

    with ExitStack() as stack:
        for module, change in changes.items():
            handle = module.register_forward_pre_hook(hook(change))
            stack.callback(handle.remove)
        yield


def as_noted(model: Any, folder: Path) -> Any:
    """`model` of `folder`, with rounded activations where its `quantization.json` asks for them."""
    note = folder / NOTE
    bits = (
        json.loads(note.read_text(encoding="utf-8"))["activation_bits"] if note.exists() else None
    )
    if bits:
        for name, linear in inner_linears(model).items():
            model.set_submodule(name, rounding_inputs(linear, bits))
    return model
