"""Processes that end with the one that started them, however it ends."""

import os
import signal
import threading
import time


def end_with_parent(group: bool = False) -> None:
    """End this process as soon as its parent is gone, even killed.

    Args:
        group: end the process group of this process with it.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        (os.killpg if group else os.kill)(os.getpgrp() if group else os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
