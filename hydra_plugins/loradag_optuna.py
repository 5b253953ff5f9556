"""Hydra's plugin for searches: `hydra/sweeper=optuna`, with the options of `conf/hydra/sweeper`.

Hydra finds plugins in this namespace alone, in every folder of `sys.path` that has one. The search
itself is in `loradag/sweeps/search.py`.
"""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    def __init__(self, **_: Any) -> None:
        """The options are read when the sweep starts, before anything runs."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        from loradag.sweeps.lifecycle import running_search

        assert self.launcher is not None
        running_search().run(self.launcher)
