"""What trl does to a model that it is given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def trained_parameters_unchanged(model: Any) -> Iterator[None]:
    """Give the trained parameters of `model` their dtypes and values back at the end.

    Why: `SFTTrainer` rounds what trains on a bitsandbytes base to bfloat16: slow on a CPU without
    it, and lossy for a start that was computed. Autocast rounds in each product instead.
    Versions: trl 1.16, in `SFTTrainer.__init__`, without an option.
    Unnecessary once trl leaves the dtype to the caller (https://github.com/huggingface/peft/issues/2889).
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in before:
            parameter.data = before[name]
