"""Standard output whose reader may leave before its end, as `head` does."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_broken_pipe() -> Iterator[None]:
    """Where the reader of standard output leaves, end the process quietly, with exit code 1.

    https://docs.python.org/3/library/signal.html#note-on-sigpipe
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()  # what is still buffered fails here, not at the exit
    except BrokenPipeError:
        # Python flushes once more at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
