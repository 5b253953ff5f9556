"""Read and check `params.yaml`: types, rules and combinations, all problems at once.

Hydra refuses an unknown key, a wrong type or an unknown option at composition. The rules (ranges,
choices, combinations) are checked by `validate`, which every stage calls on the whole of
`params.yaml` before it does any work.
"""

import dataclasses
import difflib
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loradag.config.combinations import check_combinations
from loradag.config.problems import ConfigError, Problem
from loradag.config.rules import Rule
from loradag.config.sections import Config


def load_config(path: Path) -> Config:
    """Read and validate a `params.yaml`.

    Raises:
        ConfigError: with every problem of the file, or because it is missing or not YAML.
    """
    if not path.exists():
        remedy = "Run in the project's root, or compose it with `python -m conf`."
        raise ConfigError([Problem(str(path), None, "is not there", remedy)])
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # YAML and interpolation errors share no base class
        first_line = str(error).splitlines()[0]
        remedy = "Correct the line, or compose the file anew with `python -m conf`."
        raise ConfigError([Problem(str(path), first_line, "is not valid YAML", remedy)]) from error
    return validate(raw)


def validate(raw: Any, source: str = "params.yaml") -> Config:
    """Check a composed config, as plain containers, against types, rules and combinations.

    Raises:
        ConfigError: with every problem found.
    """
    malformed: list[Problem] = []
    broken: list[Problem] = []
    config: Config = _read(Config, raw, "", malformed, broken)
    if not malformed:
        broken += check_combinations(config)
    if problems := malformed + broken:
        raise ConfigError(problems, source)
    return config


def _read(cls: type, raw: Any, prefix: str, malformed: list[Problem], broken: list[Problem]) -> Any:
    """Build `cls` field by field, converting values as OmegaConf does, and collect all problems.

    Args:
        cls: the dataclass of a section, or `Config`.
        raw: the section as plain containers.
        prefix: of the section's keys, such as `adapter.`; empty for `Config`.
        malformed: takes unknown and missing keys and wrong types; beyond them no combination of
            keys can be checked.
        broken: takes values that break the rule of their key.
    """
    if not isinstance(raw, dict):
        malformed.append(
            Problem(prefix.rstrip(".") or "the file", raw, "must be a mapping of keys to values",
                    "Compose it anew with `python -m conf`.")
        )  # fmt: skip
        return None
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in sorted(raw.keys() - fields.keys(), key=str):
        close = difflib.get_close_matches(str(key), fields, n=1)
        remedy = f"Did you mean {prefix}{close[0]}?" if close else f"Known: {', '.join(fields)}."
        malformed.append(Problem(f"{prefix}{key}", raw[key], "is not a known key", remedy))
    values: dict[str, Any] = {}
    typed = OmegaConf.structured(cls)
    for name, spec in fields.items():
        key = f"{prefix}{name}"
        if raw.get(name, MISSING) == MISSING:
            remedy = f"Set {key} to a value."
            malformed.append(Problem(key, MISSING, "is missing", remedy))
        elif isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            values[name] = _read(spec.type, raw[name], f"{key}.", malformed, broken)
        else:
            values[name] = _convert(typed, spec, key, raw[name], malformed)
            rule: Rule | None = spec.metadata.get("rule")
            if rule and values[name] is not None and not rule.holds(values[name]):
                broken.append(Problem(key, values[name], rule.text, rule.remedy))
    return cls(**values)


def _convert(
    typed: DictConfig, spec: dataclasses.Field[Any], key: str, value: Any, malformed: list[Problem]
) -> Any:
    try:
        typed[spec.name] = value
        converted = typed[spec.name]
        is_node = OmegaConf.is_config(converted)
        return OmegaConf.to_container(converted) if is_node else converted
    except OmegaConfBaseException:
        kind = (
            spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", spec.type)
        )
        remedy = f"Give it a value of type {kind}."
        malformed.append(Problem(key, value, "has the wrong type", remedy))
        return None
