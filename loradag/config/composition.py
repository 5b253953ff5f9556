"""Composition of `conf/` by Hydra, as DVC does it for `dvc exp run -S`."""

from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from loradag.config.problems import LoradagError
from loradag.config.validation import validate


def compose(overrides: list[str]) -> DictConfig:
    """The resolved, validated config of `overrides`.

    Raises:
        LoradagError: Hydra refuses an override, or the config breaks a rule.
    """
    try:
        with initialize_config_module("conf", version_base="1.3"):
            config = hydra_compose("config", overrides=overrides)
    except HydraException as error:
        causes = [str(error), str(error.__cause__ or "")]
        raise LoradagError("\n".join(line for line in causes if line)) from error
    config.checked = True  # else resolving checks the rules; below, errors name the overrides
    OmegaConf.resolve(config)
    validate(plain(config), source=" ".join(overrides) or "the default configuration")
    return config


def plain(config: DictConfig) -> dict[str, Any]:
    """`config` as plain containers."""
    return OmegaConf.to_container(config)  # type: ignore[return-value]


def write_params(config: DictConfig, root: Path = Path()) -> None:
    """Write `params.yaml`, byte for byte as `dvc exp run` writes it."""
    (root / "params.yaml").write_text(OmegaConf.to_yaml(config), encoding="utf-8")
