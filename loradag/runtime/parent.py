"""Processes that end when their parent process ends, even when it is killed."""

import os
import signal
import threading
import time


def end_with_parent(group: bool = False) -> None:
    """Kill this process as soon as its parent has ended.

    Args:
        group: kill the whole process group of this process.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        (os.killpg if group else os.kill)(os.getpgrp() if group else os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
