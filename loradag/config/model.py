"""The section `model`."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loradag.config.rules import (
    at_least,
    one_of,
)


@dataclass
class Model:
    """The base model: where it comes from, and its shape."""

    source: str = one_of("package", "hub", "local", "random")
    id: str | None = MISSING  # Python package, or hub repository
    revision: str | None = MISSING  # hub branch, tag or commit; fetch pins it to a commit
    path: str | None = MISSING  # local: a folder of transformers' layout
    context: int | None = at_least(8)  # tokens; fetch holds the model to it
    pad_token: str | None = MISSING  # for tokenizers without one, or whose pad is their EOS
    license: str | None = MISSING  # for the model card
    # `random`: the transformers config to make weights from. Else: the shape that `plan` reckons
    # with before the model is here; fetch holds the model to it.
    config: dict[str, Any] = MISSING
    seed: int = at_least(0)  # random: of the weights
