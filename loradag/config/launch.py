"""The section `launch`."""

import math
from dataclasses import dataclass

from omegaconf import MISSING

from loradag.config.rules import at_least, one_of
from loradag.config.train import Train

ENGINES = ("fsdp", "deepspeed")  # that divide the model among the processes


@dataclass
class Launch:
    """The processes that train, one a device."""

    strategy: str = one_of("single", "ddp", "fsdp", "deepspeed")
    processes: int = at_least(1)  # of all machines together
    machines: int = at_least(1)
    # fsdp, deepspeed: full_shard divides weights, gradients and optimizer states; shard_grad_op
    # keeps the weights of a step on every device.
    sharding: str | None = one_of("full_shard", "shard_grad_op")
    offload: bool = MISSING  # fsdp, deepspeed: what is divided stays in the CPU's memory


def share_of(train: Train, processes: int) -> tuple[int, int]:
    """Rows of a forward pass and forward passes a step of each process.

    Together the processes compute a step's `batch_size * gradient_accumulation` rows, whatever
    their number; it must divide them. Forward passes are divided first: a device then computes
    `batch_size` rows at once, as a single one does.
    """
    passes = math.gcd(train.gradient_accumulation, processes)
    return train.batch_size * passes // processes, train.gradient_accumulation // passes
