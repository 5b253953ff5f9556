"""The section `inputs`: what stages read from outside the pipeline, as `dvc.yaml` names it.

Composing the configuration derives it from the other sections, so that an edited file reruns what
depends on it. `${inputs.rows}` in `dvc.yaml` takes exactly one existing path: where there is
nothing to read, it is a dep that the stage has anyway.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

CALIBRATION = "data/prepared/calibration.parquet"


# The option that names each input.
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
    calibration: str = MISSING  # quantize: the rows that static scales are taken from


def derive_inputs(config: Any) -> dict[str, str]:
    """The section `inputs` of a configuration: a `Config`, or what Hydra composed."""
    model, prepare, quantize = config.model, config.prepare, config.quantize
    evaluate, general = config.evaluate, config.evaluate.general.path
    local = model.source == "local" and not _is_unset(model, "path")
    rows = _row_paths(prepare)
    held_out = [] if _is_unset(prepare, "eval_path") else _listed(prepare.eval_path)
    transform = [] if _is_unset(prepare, "transform") else [prepare.transform.rpartition(":")[0]]
    return {
        "model": common_path([model.path]) if local else "stages/fetch.py",
        "rows": common_path(rows) if rows else "stages/prepare.py",
        "eval_rows": common_path(held_out) if held_out else "stages/prepare.py",
        "transform": common_path(transform) if any(transform) else "stages/prepare.py",
        "general": common_path([general]) if general else "data/prepared",
        "tasks": common_path([evaluate.tasks_path]) if evaluate.tasks_path else "data/prepared",
        "adapter": (
            "stages/train.py"
            if _is_unset(config.adapter, "start")
            else common_path([config.adapter.start])
        ),
        "calibration": CALIBRATION if quantize.scheme == "static_w8a8" else "artifacts/base",
    }


def _row_paths(prepare: Any) -> list[str]:
    if prepare.source == "file" and not _is_unset(prepare, "path"):
        return _listed(prepare.path)
    if prepare.source == "mix" and not _is_unset(prepare, "mix"):
        return [path for item in prepare.mix if "path" in item for path in _listed(item["path"])]
    return []


def _listed(paths: Any) -> list[str]:
    return [paths] if isinstance(paths, str) else list(paths)


def common_path(paths: Iterable[str]) -> str:
    """The file or folder that holds all of `paths`: of a pattern, the folder before its wildcard.

    Relative paths stay relative, so that the same project in another folder has the same deps.
    """
    fixed = [_without_wildcards(os.path.expanduser(path)) for path in paths]
    return Path(fixed[0] if len(fixed) == 1 else os.path.commonpath(fixed)).as_posix()


def _without_wildcards(path: str) -> str:
    parts = Path(path).parts
    first = next((at for at, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    return str(Path(*parts[:first]))


def _is_unset(section: Any, name: str) -> bool:
    if OmegaConf.is_config(section) and OmegaConf.is_missing(section, name):
        return True
    return getattr(section, name) in (None, MISSING)
