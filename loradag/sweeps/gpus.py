"""One GPU for each of the jobs that run at once on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    Asks NVIDIA's driver: importing torch for it takes seconds.
    """
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


@contextmanager
def claim_gpu(gpus: Sequence[str], job: str, locks: Path | None = None) -> Iterator[str | None]:
    """Yield one of `gpus` that no other job on this machine has claimed; None if there are none.

    Waits for a free one. A claim ends with its process, however that ends.

    Args:
        gpus: as `visible_gpus` names them.
        job: who waits, for the message.
        locks: where the claims of all sweeps of this user are.
    """
    from filelock import FileLock, Timeout

    if not gpus:
        yield None
        return
    locks = locks or Path(tempfile.gettempdir()) / f"loradag-gpus-{os.getuid()}"
    locks.mkdir(parents=True, exist_ok=True)
    waiting = False
    while True:
        for gpu in gpus:
            lock = FileLock(locks / f"{gpu}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield gpu
            finally:
                lock.release()
            return
        if not waiting:
            log.info("%s waits for a GPU: other jobs use %s", job, ", ".join(gpus))
            waiting = True
        time.sleep(0.5)
