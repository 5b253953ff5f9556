"""The configuration: values in `*.yaml`, types and rules in `loradag/config`.

Importing this package registers the schema with Hydra, so that every composition, also DVC's own
(`dvc exp run -S`), refuses unknown keys, wrong types and unknown options. It also registers the
resolvers:

- `${inputs:NAME}` derives the deps that `dvc.yaml` names.
- `${general_source:}` chooses text outside the tuning data.
- `${checked:}` checks the rules as the configuration is composed.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from loradag.config.inputs import derive_inputs
from loradag.config.sections import Config
from loradag.config.validation import validate


def _checked(*, _root_: Any) -> bool:
    composed: Any = OmegaConf.to_container(_root_)
    composed.pop("hydra", None)
    config = OmegaConf.create(composed | {"checked": True})
    validate(OmegaConf.to_container(config, resolve=True), source="the composed configuration")
    return True


def _input(name: str, *, _root_: Any) -> str:
    return derive_inputs(_root_)[name]


def _general_source(*, _root_: Any) -> str:
    return "quotes" if _root_.prepare.source == "glosses" else "glosses"


ConfigStore.instance().store(name="schema", node=Config)
OmegaConf.register_new_resolver("general_source", _general_source, replace=True)
OmegaConf.register_new_resolver("inputs", _input, replace=True)
OmegaConf.register_new_resolver("checked", _checked, replace=True)
