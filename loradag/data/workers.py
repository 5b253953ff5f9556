"""Processes that share the tasks of a preparation."""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from loradag.config.problems import LoradagError

# Imported before the processes of the work part.
PRELOADED = ["loradag.data.passes", "fastokens", "numpy", "pandas", "pyarrow.parquet", "tokenizers",
             "transformers.utils.chat_template_utils"]  # fmt: skip


class Workers:
    """Runs the methods of `work` on tasks, here or in other processes, results in order."""

    def __init__(self, work: Any, count: int) -> None:
        self.work = work
        self.count = count
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Forked, but not from here, where libraries have started threads: from a server that
            # has imported what the work needs, once for all processes.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            self.pool = ProcessPoolExecutor(count, context, _start, (work,))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        if self.pool is None:
            for task in tasks:
                yield getattr(self.work, method)(*task)
            return
        waiting: deque[Future[Any]] = deque()
        for task in tasks:
            waiting.append(self.pool.submit(_call, method, task))
            if len(waiting) > 2 * self.count:  # no more tasks in memory than keep all busy
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise LoradagError(
            "prepare: one of its processes was killed, as the system does where memory runs out. "
            "Set runtime.threads=1, which takes the least."
        ) from error


_work: Any = None  # of this process


def _start(work: Any) -> None:
    global _work
    _work = work
    os.environ["RAYON_NUM_THREADS"] = "1"  # the processes share the cores already


def _call(method: str, task: tuple[Any, ...]) -> Any:
    return getattr(_work, method)(*task)
