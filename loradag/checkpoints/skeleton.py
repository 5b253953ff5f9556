"""The names and ties of a model's weights, from its class, without loading any."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Skeleton:
    """Names are the model's own; a checkpoint may leave out `prefix`.

    Attributes:
        model: without weights, on torch's device "meta".
        parameters: the shape of each, in the order of the model's modules.
        tied: parameter: the one whose storage it shares.
        transposed: modules that store (in, out): GPT-2's Conv1D, and experts of some models.
    """

    model: Any
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    transposed: frozenset[str]
    prefix: str

    def parameter(self, stored: str) -> str:
        """The model's name of a tensor that a checkpoint calls `stored`."""
        full = f"{self.prefix}.{stored}"
        return full if stored not in self.parameters and full in self.parameters else stored


def read_skeleton(folder: Path) -> Skeleton:
    """The skeleton of the model that `folder`'s config describes."""
    from transformers.pytorch_utils import Conv1D

    model = without_weights(folder)
    return Skeleton(
        model=model,
        parameters={
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters(remove_duplicate=False)
        },
        tied=dict(model.all_tied_weights_keys),
        transposed=frozenset(
            name
            for name, module in model.named_modules()
            if isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
        ),
        prefix=str(model.base_model_prefix),
    )


def without_weights(folder: Path) -> Any:
    """The model that `folder`'s config describes, on torch's device "meta"."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
