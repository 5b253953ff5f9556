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
    path: str | None = MISSING  # local: a folder that `save_pretrained` wrote
    context: int | None = at_least(8)  # tokens; `fetch` checks that the model has as many
    pad_token: str | None = MISSING  # for tokenizers without one, or whose pad is their EOS
    license: str | None = MISSING  # for the model card
    # random: the transformers config that the weights are initialized for. Else: the shape that
    # `plan` uses before the model is fetched; `fetch` checks the model against it.
    config: dict[str, Any] = MISSING
    seed: int = at_least(0)  # random: of the initial weights
