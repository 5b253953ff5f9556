"""What trl does to a model that it is given."""

from collections.abc import Callable
from typing import Any


def keep_trained_parameters(model: Any) -> Callable[[], None]:
    """A function that gives the trained parameters of `model` their present dtypes and values back.

    Why: `SFTTrainer` rounds what trains on a bitsandbytes base to bfloat16: slow on a CPU without
    it, and lossy for a start that was computed. Autocast rounds in each product instead.
    Versions: trl 1.16, in `SFTTrainer.__init__`, without an option.
    Unnecessary once peft can leave the dtype of adapters on a quantised base to the caller
    (https://github.com/huggingface/peft/issues/2889), and trl then does.
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def restore() -> None:
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.data = before[name]

    return restore
