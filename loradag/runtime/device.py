"""Where and in what precision a stage computes. Set by `run_stage` from the `runtime` section."""

from __future__ import annotations

import logging
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.config.schema import LoradagError, Runtime

if TYPE_CHECKING:
    import torch

THREADS = "LORADAG_THREADS"
DEVICE = "LORADAG_DEVICE"


def configure(runtime: Runtime) -> None:
    """Set threads, device and determinism through the environment, before torch is imported.

    `LORADAG_THREADS` and `LORADAG_DEVICE` win over the section, so that whoever starts several
    runs at once can divide the machine among them.
    """
    threads = os.environ.setdefault(THREADS, str(runtime.threads or os.cpu_count() or 1))
    os.environ.setdefault(DEVICE, runtime.device)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = threads
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # transformers compiles its ternary layers' rounding: a C++ compiler and half a minute, for
    # functions of three operations.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    _quieten()


def _quieten() -> None:
    """Silence what the libraries say about each other: nothing a user could act on."""
    # Kernels for other machines than this one, and types registered with torch.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    logging.getLogger("transformers.quantizers.quantizer_bitnet").setLevel(logging.ERROR)
    # trl still says gradient_checkpointing where transformers says activation_checkpointing.
    warnings.filterwarnings("ignore", ".*checkpointing` is deprecated", FutureWarning)


def threads() -> int:
    return int(os.environ.get(THREADS) or os.cpu_count() or 1)


def device() -> str:
    """The torch device: `cuda` where one is, `mps` on a Mac, else `cpu`.

    Raises:
        LoradagError: `runtime.device` names one that is not there.
    """
    import torch

    wanted = os.environ.get(DEVICE, "auto")
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, available in there.items() if available)
    if not there[wanted]:
        available = ", ".join(name for name, is_there in there.items() if is_there)
        raise LoradagError(
            f"runtime.device = {wanted!r}: this machine has {available}. Set runtime.device=auto."
        )
    return wanted


def compute_dtype(name: str) -> torch.dtype:
    """The torch dtype of an option; `auto` is what the device computes natively.

    On a CPU without bfloat16 instructions a bfloat16 product is several times slower than a
    float32 one, so there `auto` is float32.
    """
    import torch

    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device() == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device() == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return torch.float32


def peak_rss_bytes() -> int:
    """The most memory this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent held before this one's exec
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_memory_bytes() -> int:
    """The most memory held on the device that computes: the GPU's, or this process's."""
    import torch

    if torch.cuda.is_available() and device() == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return peak_rss_bytes()
