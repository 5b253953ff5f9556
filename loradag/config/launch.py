"""The section `launch`."""

from dataclasses import dataclass

from omegaconf import MISSING

from loradag.config.rules import at_least, one_of

ENGINES = ("fsdp", "deepspeed")  # that shard the model over the processes


@dataclass
class Launch:
    """The processes that train, one per device."""

    strategy: str = one_of("single", "ddp", "fsdp", "deepspeed")
    processes: int = at_least(1)  # of all machines together
    machines: int = at_least(1)
    # fsdp, deepspeed: full_shard shards weights, gradients and optimizer states; shard_grad_op
    # keeps the full weights on every device during a step.
    sharding: str | None = one_of("full_shard", "shard_grad_op")
    offload: bool = MISSING  # fsdp, deepspeed: keep what is sharded in CPU memory
