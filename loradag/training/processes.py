"""Training in several processes, one a device, by torch's elastic launcher.

accelerate's launchers of functions are made of it. It starts the processes, tells them of each
other, and ends all when one fails; in each of them the trainer is on accelerate. What the stage and
the configuration refuse is refused before any process starts.

On several machines the same command runs on each, in a folder that they share. `MASTER_ADDR` and
`MASTER_PORT` name the first machine, `NODE_RANK` (or SLURM's `SLURM_NODEID`) counts them from 0;
the first one writes the outputs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, TypeVar

from loradag.config.launch import Launch
from loradag.config.problems import LoradagError
from loradag.config.sections import Runtime
from loradag.models.device import device
from loradag.runtime.environment import configure, divided_threads
from loradag.runtime.parent import end_with_parent

NODE_RANK = "NODE_RANK"
T = TypeVar("T")


def machine_rank(launch: Launch) -> int:
    """The number of this machine among those of `launch`, from 0."""
    if launch.machines == 1:  # whatever a cluster counts
        return 0
    return int(os.environ.get(NODE_RANK) or os.environ.get("SLURM_NODEID") or 0)


def run_ranks(launch: Launch, function: Callable[..., T], *arguments: Any) -> dict[int, T]:
    """What `function(*arguments)` returns in each process of this machine, by rank.

    A launch of one process calls it in this one.

    Raises:
        LoradagError: that a process raised, or for a process that was ended from outside.
        RuntimeError: any other error of a process, with its traceback.
    """
    if launch.processes == 1:
        return {0: function(*arguments)}
    here = launch.processes // launch.machines
    _check_machine(launch, here)
    from accelerate.utils import check_cuda_p2p_ib_support, patch_environment
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # raised, see below
    environment: dict[str, Any] = divided_threads(here)
    environment["TORCH_CPP_LOG_LEVEL"] = "ERROR"  # advice on DDP, from every process
    if launch.strategy == "fsdp":  # as `accelerate launch` does: it decides which backends start
        environment |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_OFFLOAD_PARAMS": str(launch.offload).lower(),
        }
    if not check_cuda_p2p_ib_support():  # as `accelerate launch` does
        environment |= {"NCCL_P2P_DISABLE": "1", "NCCL_IB_DISABLE": "1"}
    config = LaunchConfig(
        min_nodes=launch.machines,
        max_nodes=launch.machines,
        nproc_per_node=here,
        run_id="loradag",
        max_restarts=0,
        **_rendezvous(launch),
    )
    try:
        with patch_environment(**environment):
            returned = elastic_launch(config, _rank)(function, *arguments)
    except SignalException as stopped:
        if stopped.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        raise _error(*failed.get_first_failure(), launch) from None
    if 0 not in returned:
        sys.exit()  # the first machine writes and reports
    return dict(returned)


def _check_machine(launch: Launch, here: int) -> None:
    """Refuse what this machine cannot run in `here` processes.

    Raises:
        LoradagError: too few GPUs, a device without processes, or a package that is missing.
    """
    import torch

    name = device()
    if name == "mps" or (name == "cuda" and here > torch.cuda.device_count()):
        found = "one GPU of a Mac" if name == "mps" else f"{torch.cuda.device_count()} GPUs"
        raise LoradagError(
            f"launch.processes = {launch.processes}: each process takes a GPU, {here} on this "
            f"machine, which has {found}. Lower it, or set runtime.device=cpu."
        )
    if launch.offload and name == "cpu":
        raise LoradagError(
            "launch.offload = true: the model is on the CPU already. Set launch.offload=false."
        )
    if launch.strategy == "deepspeed":
        if name == "cpu":
            raise LoradagError(
                "launch.strategy = 'deepspeed': accelerate runs it on GPUs alone. Take launch=fsdp."
            )
        if find_spec("deepspeed") is None:
            raise LoradagError(
                "launch.strategy = 'deepspeed': the package deepspeed is not installed. Install "
                "it with `pip install -e '.[deepspeed]'`, or take launch=fsdp."
            )


def _rendezvous(launch: Launch) -> dict[str, Any]:
    """How the launchers of the machines meet; that of one machine takes any free port of it."""
    if launch.machines == 1:
        return {
            "rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": "localhost",
        }  # fmt: skip
    address = [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")]
    if not all(address):
        raise LoradagError(
            f"launch.machines = {launch.machines}: MASTER_ADDR and MASTER_PORT are not set. Set "
            f"them to the first machine's address and a free port on it, on every machine, and "
            f"{NODE_RANK} to 0, 1, … on each."
        )
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": ":".join(str(part) for part in address),
        "rdzv_configs": {"rank": machine_rank(launch)},
    }


def _rank(function: Callable[..., T], *arguments: Any) -> T:
    """The function of one process."""
    end_with_parent()
    configure(Runtime(threads=None, device="auto"))  # the parent's environment decides both
    import datasets
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if os.environ["RANK"] != "0":
        datasets.disable_progress_bars()
    return function(*arguments)


def _error(rank: int, failure: Any, launch: Launch) -> Exception:
    """What `rank` raised, or that a process was ended from outside."""
    process = f"process {rank} of {launch.processes}"
    if isinstance(failure.message, dict):  # what it wrote down before it ended
        kind, _, text = failure.message["message"].partition(": ")
        if kind in ("LoradagError", "ConfigError"):
            return LoradagError(text)
        if " by peer" not in text:
            return RuntimeError(f"{process}: {failure.message['extraInfo']['py_callstack']}")
        reason = "lost the connection to another one, which was ended from outside"
    elif failure.exitcode < 0:
        reason = f"was ended from outside by {failure.signal_name()}"
    else:
        reason = f"ended with exit code {failure.exitcode} and no message"
    return LoradagError(
        f"{process} {reason}, so all were ended. Run `dvc repro` to continue from the last "
        "checkpoint. Where the kernel ended it, it needs more memory: lower train.batch_size (and "
        "raise train.gradient_accumulation), or take launch=fsdp."
    )
