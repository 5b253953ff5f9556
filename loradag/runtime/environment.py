"""The environment of a stage: threads, device, determinism, quiet libraries."""

import logging
import os
import warnings

from loradag.config.sections import Runtime

THREADS = "LORADAG_THREADS"
DEVICE = "LORADAG_DEVICE"
LIBRARY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def configure(runtime: Runtime) -> None:
    """Set threads, device and determinism through the environment, before torch is imported.

    `LORADAG_THREADS` and `LORADAG_DEVICE` win over the section, so that whoever starts several
    runs at once can divide the machine among them.
    """
    threads = os.environ.setdefault(THREADS, str(runtime.threads or os.cpu_count() or 1))
    os.environ.setdefault(DEVICE, runtime.device)
    os.environ.update(dict.fromkeys(LIBRARY_THREADS, threads))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # cuBLAS is deterministic only with a fixed workspace.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    silence_libraries()


def silence_libraries() -> None:
    """Silence what the libraries report about each other, which no user can act on."""
    # They report kernels of other hardware, and types that they register with torch.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    logging.getLogger("transformers.quantizers.quantizer_bitnet").setLevel(logging.ERROR)
    # trl still says gradient_checkpointing where transformers says activation_checkpointing.
    warnings.filterwarnings("ignore", ".*checkpointing` is deprecated", FutureWarning)


def threads() -> int:
    """The threads that this process may use."""
    return int(os.environ.get(THREADS) or os.cpu_count() or 1)


def divided_threads(processes: int) -> dict[str, str]:
    """The environment of each of `processes` processes that share this one's threads."""
    return dict.fromkeys((THREADS, *LIBRARY_THREADS), str(max(1, threads() // processes)))
