"""What torch's DistributedDataParallel does to frozen parameters."""

from typing import Any


def leave_frozen_parameters(model: Any) -> None:
    """Let DDP neither compare nor send the parameters of `model` that are not trained.

    Why: every process has loaded the same; and quantised weights of torchao, which are tensors of
    its own classes, have no such operation.
    Versions: torch 2.13; the attribute is without documentation.
    Unnecessary once accelerate passes `init_sync=False` on.
    """
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    model._ddp_params_and_buffers_to_ignore = frozen
