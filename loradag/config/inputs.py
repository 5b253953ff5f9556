"""The section `inputs`: the user's own files that stages read, as deps in `dvc.yaml`.

Composition derives it from the other sections, so that an edited file reruns the stages that depend
on it. A dep such as `${inputs.rows}` must be exactly one existing path: where a stage reads no file
of the user's, it is another dep of that stage.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from loradag.config.quantize import INPUT_ROUNDINGS

CALIBRATION = "data/prepared/calibration.parquet"

# Another dep of the same stage, for inputs that are not set.
DEFAULTS = {
    "model": "stages/fetch.py",
    "rows": "stages/prepare.py",
    "eval_rows": "stages/prepare.py",
    "transform": "stages/prepare.py",
    "general": "data/prepared",
    "tasks": "data/prepared",
    "adapter": "stages/train.py",
}
# The key that sets each input.
INPUT_KEYS = {
    "model": "model.path",
    "rows": "prepare.path",
    "eval_rows": "prepare.eval_path",
    "transform": "prepare.transform",
    "general": "evaluate.general.path",
    "adapter": "adapter.start",
    "tasks": "evaluate.tasks_path",
}


@dataclass
class Inputs:
    """A path for each stage that reads one; derived, never set by hand."""

    model: str = MISSING  # fetch: the folder of model.source = local
    rows: str = MISSING  # prepare: the files or folders of prepare.source = file or mix
    eval_rows: str = MISSING  # prepare: the files or folders of prepare.eval_path
    transform: str = MISSING  # prepare: the file of prepare.transform
    general: str = MISSING  # baseline and evaluate: the file of evaluate.general.path
    tasks: str = MISSING  # baseline and evaluate: the folder of evaluate.tasks_path
    adapter: str = MISSING  # train: the folder of adapter.start
    calibration: str = MISSING  # quantize: the rows that a scheme is calibrated on


def derive_inputs(config: Any) -> dict[str, str]:
    """The section `inputs` of a configuration, a `Config` or a `DictConfig`."""
    quantize = config.quantize
    is_calibrated = quantize.scheme == "static_w8a8" or quantize.rounding in INPUT_ROUNDINGS
    calibration = CALIBRATION if is_calibrated else "artifacts/base"
    return DEFAULTS | {"calibration": calibration} | own_inputs(config)


def own_inputs(config: Any) -> dict[str, str]:
    """The inputs that are the user's own files and folders."""
    model, prepare, evaluate = config.model, config.prepare, config.evaluate
    named = {
        "model": _paths(model, "path") if model.source == "local" else [],
        "rows": _row_paths(prepare),
        "eval_rows": _paths(prepare, "eval_path"),
        "transform": [path.rpartition(":")[0] for path in _paths(prepare, "transform")],
        "general": _paths(evaluate.general, "path"),
        "tasks": _paths(evaluate, "tasks_path"),
        "adapter": _paths(config.adapter, "start"),
    }
    return {name: common_path(paths) for name, paths in named.items() if any(paths)}


def _row_paths(prepare: Any) -> list[str]:
    if prepare.source == "file":
        return _paths(prepare, "path")
    if prepare.source == "mix" and not _is_unset(prepare, "mix"):
        items = prepare.mix if isinstance(prepare.mix, Sequence) else []
        return [
            path
            for item in items
            if isinstance(item, Mapping)
            for path in _listed(item.get("path"))
        ]
    return []


def _paths(section: Any, name: str) -> list[str]:
    """The paths of an option that takes none, one or several."""
    return [] if _is_unset(section, name) else _listed(getattr(section, name))


def _listed(paths: Any) -> list[str]:
    """The paths among the values; the rule of their key refuses all others."""
    values = [paths] if isinstance(paths, str) or not isinstance(paths, Sequence) else paths
    return [path for path in values if isinstance(path, str)]


def common_path(paths: Iterable[str]) -> str:
    """The file or folder that contains all of `paths`.

    Of a pattern it is the folder before the first wildcard. Relative paths stay relative, so that
    the deps do not depend on where the project is.
    """
    fixed = [_without_wildcards(os.path.expanduser(path)) for path in paths]
    if len({os.path.isabs(path) for path in fixed}) > 1:
        fixed = [os.path.abspath(path) for path in fixed]
    return Path(fixed[0] if len(fixed) == 1 else os.path.commonpath(fixed)).as_posix()


def _without_wildcards(path: str) -> str:
    parts = Path(path).parts
    first = next((at for at, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return str(Path(*parts[:first]))


def _is_unset(section: Any, name: str) -> bool:
    if OmegaConf.is_config(section) and OmegaConf.is_missing(section, name):
        return True
    return getattr(section, name) in (None, MISSING)
