"""Locks between processes. The kernel releases those of a process that dies, even when killed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive(path: Path, waiting: str) -> Iterator[None]:
    """A context that holds the lock file `path`, which exists only while it is held.

    Args:
        path: of the lock file.
        waiting: what a process prints if it has to wait for another one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, poll_interval=0.2)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        # Deleted while it is held: a waiting process notices that, and locks a new file.
        path.unlink(missing_ok=True)
        lock.release()
