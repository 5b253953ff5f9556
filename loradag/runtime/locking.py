"""Locks between processes. The kernel releases them when their process dies, however it dies."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def exclusive(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock `path`; whoever comes second prints `waiting` and waits.

    The lock file exists only while somebody holds the lock.
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
        # Deleted while it is held: a waiting process notices and locks the next file of this name.
        path.unlink(missing_ok=True)
        lock.release()
