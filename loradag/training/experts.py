"""The matrices of a mixture of experts, which are parameters and no linear layers.

In transformers 5 a layer's experts are one parameter of shape (experts, out, in) for each of their
projections, and the router before them is a parameter (experts, hidden). peft adapts such
parameters by their names, its `target_parameters`.
"""

from __future__ import annotations

from typing import Any


def expert_matrices(model: Any) -> list[str]:
    """The names of `model`'s parameters that are matrices of experts, then those of routers."""
    import torch
    from transformers.pytorch_utils import Conv1D

    layers = (torch.nn.Linear, torch.nn.Embedding, torch.nn.Conv1d, Conv1D)
    holders = {name: module for name, module in model.named_modules()
               if not isinstance(module, layers)}  # fmt: skip
    found = [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() in (2, 3) and parent(name) in holders and "bias" not in name
    ]
    experts = [name for name in found if "Expert" in type(holders[parent(name)]).__name__]
    blocks = {parent(parent(name)) for name in experts}
    routers = [name for name in found if parent(parent(name)) in blocks and name not in experts]
    return experts + routers


def parent(name: str) -> str:
    """The name of the module that holds the module or parameter of a name."""
    return name.rpartition(".")[0]
