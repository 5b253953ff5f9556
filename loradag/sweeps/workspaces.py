"""A workspace: what `dvc.yaml` declares that the stages read, params of its own, the shared cache.

Nothing else is in it: no repository, no data, no models, and no `dvc.lock`, so that no result of
another run is taken for this one's. Outs arrive as links from the cache, and a stage that reads
what it does not declare fails here, where the project would have served an outdated result.
"""

from __future__ import annotations

import configparser
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from loradag.compat import dvc
from loradag.config.composition import write_params
from loradag.config.inputs import INPUT_KEYS
from loradag.config.problems import LoradagError
from loradag.planning.pipeline import out_paths, truncate

# Also copied where no stage depends on it: how stages are run and watched changes no output.
CODE = ("conf", "loradag", "stages")


def take_snapshot(project: Path, folder: Path) -> str:
    """Copy what the stages of `project` read from it to `folder`; returns a hash of the content.

    All jobs start from the snapshot, so that an edit during the sweep reaches none of them.
    """
    digest = hashlib.sha256()
    sources = set(_sources(project))
    code = {path for name in CODE for path in _files(project, Path(name))}
    for path in sorted(sources | code):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / path, target)
        if path in sources:
            digest.update(f"{path}\0".encode() + target.read_bytes() + b"\0")
    return digest.hexdigest()


def make_workspace(
    folder: Path, snapshot: Path, project: Path, cache: Path, params: dict[str, Any]
) -> None:
    """Make `folder` a DVC project of its own: `snapshot`, `params`, and the cache of `project`.

    Its `dvc.yaml` has the stages until `sweep.until` and `report`.
    """
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(snapshot, folder)
    definition = dvc.read_yaml(folder / "dvc.yaml")
    dvc.write_yaml(folder / "dvc.yaml", truncate(definition, params["sweep"]["until"]))
    write_params(OmegaConf.create(params), folder)
    outs = [out for stage in definition["stages"].values() for out in out_paths(stage)]
    _link_inputs(folder, project, params, outs)
    config = configparser.ConfigParser()
    config["core"] = {
        "no_scm": "true",
        "analytics": "false",
        "check_update": "false",
        "site_cache_dir": str(folder / ".dvc/site"),  # goes with the workspace
    }
    config["cache"] = {"dir": str(cache), "type": "reflink,hardlink,symlink,copy"}
    (folder / ".dvc").mkdir(exist_ok=True)
    with (folder / ".dvc/config").open("w") as file:
        config.write(file)
    # Checkpoints are keyed by content: the next job with the same training continues from them.
    checkpoints = project / ".loradag/checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    (folder / ".loradag").mkdir()
    (folder / ".loradag/checkpoints").symlink_to(checkpoints)


def _sources(project: Path) -> Iterator[Path]:
    """The files that the stages depend on and no stage makes, relative to `project`."""
    path = project / "dvc.yaml"
    if not path.exists():
        raise LoradagError(f"{path}: there is no such file. Run in the project's root.")
    stages = dvc.read_yaml(path)["stages"].values()
    outs = {out for stage in stages for out in out_paths(stage)}
    yield from (Path(name) for name in ("dvc.yaml", ".dvcignore") if (project / name).exists())
    seen: set[Path] = set()
    for dep in sorted({dep for stage in stages for dep in stage.get("deps", [])}):
        if re.search(r"\$\{", dep) or any(dep == out or dep.startswith(f"{out}/") for out in outs):
            continue  # another stage's out, by name or through a param
        if not (project / dep).exists():
            raise LoradagError(f"dvc.yaml: a stage depends on {dep}, which does not exist.")
        seen |= set(_files(project, Path(dep)))
        for parent in Path(dep).parents:
            if (project / parent / "__init__.py").exists():
                seen.add(parent / "__init__.py")
    yield from seen


def _files(project: Path, dep: Path) -> Iterator[Path]:
    if (project / dep).is_file():
        yield dep
        return
    for path in (project / dep).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(project)


def _link_inputs(folder: Path, project: Path, params: dict[str, Any], outs: list[str]) -> None:
    """Make relative paths of users' own models and rows mean the same as in the project.

    A symbolic link: DVC hashes what it points to, under the path that `dvc.yaml` names. Never one
    to an out of the project: a stage would write to it through the link.
    """
    for name, key in INPUT_KEYS.items():
        path = Path(params.get("inputs", {}).get(name, ""))
        link = folder / path
        if path.is_absolute() or any(path.is_relative_to(out) for out in outs):
            continue
        if not Path(os.path.normpath(link)).is_relative_to(folder):
            raise LoradagError(
                f"{key} = {str(path)!r}: is outside of the project, so it means another "
                "place in each job's workspace. Give it as an absolute path."
            )
        if (project / path).exists() and not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((project / path).resolve())
