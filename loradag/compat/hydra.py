"""What Hydra keeps to itself: setting values in a config that is composed already.

Why: composing a job from its files takes a third of a second, so the plan of a sweep of 24 jobs
would take 8 seconds. Jobs that choose the same files can share one composition, if their values are
set in copies of it exactly as Hydra would set them (`+`, `++`, `~`, types, unknown keys).
Versions: hydra-core 1.3. Unnecessary once Hydra composes a job in milliseconds, or offers this.
"""

from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig


def apply_overrides(overrides: Sequence[Override], config: DictConfig) -> None:
    """Set the values of `overrides` in `config`.

    Raises:
        HydraException: an override that does not fit.
    """
    ConfigLoaderImpl._apply_overrides_to_config(list(overrides), config)
