"""Hydra plugin for searches: `hydra/sweeper=optuna`, with the options of `conf/hydra/sweeper`.

Hydra looks for plugins only in packages named `hydra_plugins` on `sys.path`. The search itself is
in `loradag/sweeps/search.py`.
"""

from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class OptunaSweeper(Sweeper):
    def __init__(self, **_: Any) -> None:
        """Take no option: the sweep reads them as it starts, before anything runs."""

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
