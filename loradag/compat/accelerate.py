"""What accelerate does not offer on a CPU."""

from accelerate import PartialState
from accelerate.utils import DistributedType


def shard_on_cpu() -> None:
    """Let the `Accelerator` that is made next apply FSDP to processes on a CPU.

    Why: `AcceleratorState` reads the FSDP settings for every kind of device but the CPU, and
    trains by DDP there, without a word. Nothing else of FSDP2 needs a GPU: torch divides over gloo.
    Versions: accelerate 1.15, in `AcceleratorState.__init__`; the processes are declared as GPUs'
    there until the state declares them as FSDP's. The device stays the CPU.
    Unnecessary once `MULTI_CPU` is among the types that are read.
    """
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        state.distributed_type = DistributedType.MULTI_GPU
