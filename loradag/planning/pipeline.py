"""Which stages of `dvc.yaml` run for given params, and which come from DVC's cache.

A key of DVC's run cache is a hash of a stage's command, the hashes of its dependencies, its params
and the paths of its outs. `plan` computes the keys of configurations that have not run. A sweep's
executor computes them by the same code, names its locks by them, and compares them with what DVC
records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from loradag.compat import dvc
from loradag.config.problems import LoradagError

REPORT = "report"  # the stage that reads whatever reports there are


class StageStatus(StrEnum):
    """Whether a stage runs or comes from the cache."""

    CACHED = "cached"
    RUNS = "runs"
    ALWAYS = "always"  # `persist` keeps a stage out of the run cache: it runs in every job


@dataclass(frozen=True)
class Stage:
    """A stage of `dvc.yaml`, with `${...}` filled in."""

    name: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    cacheable: bool  # whether DVC's run cache keeps it


@dataclass(frozen=True)
class Planned:
    """A stage of one job. Stages with equal keys have equal inputs, and run once in a sweep."""

    name: str
    key: str
    status: StageStatus
    outs: Mapping[str, str]  # hash by path; a placeholder if the stage runs


class Pipeline:
    """The stages of a project in its present state, with its cache.

    Args:
        project: the folder of `dvc.yaml`.
        cache: DVC's cache.
        until: the last stage before `report`; None: all stages.
        use_lock: whether results that only `dvc.lock` records count as cached, as for `dvc repro`.
            Workspaces of a sweep start without `dvc.lock`.
    """

    def __init__(
        self, project: Path, cache: Path, until: str | None = None, use_lock: bool = True
    ) -> None:
        self.project = project
        self.cache = cache
        self.until = until
        self.use_lock = use_lock
        self._hashes: dict[str, str] = {}

    @cached_property
    def _definition(self) -> dict[str, Any]:
        definition = dvc.read_yaml(self.project / "dvc.yaml")
        if self.until is not None:
            definition = truncate(definition, self.until)
        return definition["stages"]  # type: ignore[no-any-return]

    @cached_property
    def _ignored(self) -> Any:
        from pathspec import GitIgnoreSpec

        path = self.project / ".dvcignore"
        lines = path.read_text().splitlines() if path.exists() else []
        return GitIgnoreSpec.from_lines(lines)

    @cached_property
    def _locked(self) -> dict[str, Any]:
        return dvc.read_lock(self.project) if self.use_lock else {}

    def plan(self, params: Mapping[str, Any]) -> list[Planned]:
        """The stages in order, for `params` by section."""
        planned: list[Planned] = []
        made: dict[str, str] = {}  # hash by path of out; a placeholder if its stage runs
        for stage in self.stages(params):
            key = dvc.run_cache_key(self.inputs(stage, params, made))
            outs = self._cached_outs(stage, key) if stage.cacheable else None
            status = (
                StageStatus.ALWAYS
                if not stage.cacheable
                else StageStatus.CACHED
                if outs
                else StageStatus.RUNS
            )
            outs = outs or {out: f"{key}:{out}" for out in stage.outs}
            planned.append(Planned(stage.name, key, status, outs))
            made |= outs
        return planned

    def stages(self, params: Mapping[str, Any]) -> list[Stage]:
        """The stages, each after those whose outs it reads.

        Raises:
            ValueError: stages depend on each other in a cycle.
        """
        stages = [_stage(name, entry, params) for name, entry in self._definition.items()]
        done: list[Stage] = []
        while waiting := [stage for stage in stages if stage not in done]:
            missing = [out for stage in waiting for out in stage.outs]
            ready = [s for s in waiting if not any(_containing(d, missing) for d in s.deps)]
            if not ready:
                names = ", ".join(stage.name for stage in waiting)
                raise ValueError(f"dvc.yaml: {names} depend on each other in a cycle.")
            done += ready
        return done

    def sources(self, params: Mapping[str, Any]) -> set[str]:
        """The deps that no stage writes: code, and the user's own files."""
        stages = self.stages(params)
        outs = [out for stage in stages for out in stage.outs]
        return {dep for stage in stages for dep in stage.deps if not _containing(dep, outs)}

    def inputs(
        self, stage: Stage, params: Mapping[str, Any], made: Mapping[str, str]
    ) -> dict[str, Any]:
        """The inputs of a stage, of which its key is a hash (`dvc.run_cache_key`).

        Args:
            stage: of `stages`.
            params: by section.
            made: hashes of the outs of earlier stages, by path.
        """
        deps = [
            {"path": dep, "hash": "md5", "md5": self._hash(dep, made)} for dep in sorted(stage.deps)
        ]
        inputs: dict[str, Any] = {"cmd": stage.cmd, "deps": deps, "outs": sorted(stage.outs)}
        if stage.params:
            values = {name: _select(params, name) for name in sorted(stage.params)}
            inputs["params"] = {"params.yaml": values}
        return inputs

    def prepared(self, planned: Sequence[Planned]) -> dict[str, Any] | None:
        """The report of `prepare`, where the cache has it."""
        for stage in planned:
            if stage.name == "prepare" and stage.status is StageStatus.CACHED:
                path = dvc.object_path(self.cache, stage.outs["reports/prepare.json"])
                return json.loads(path.read_text())  # type: ignore[no-any-return]
        return None

    def _hash(self, dep: str, made: Mapping[str, str]) -> str:
        """DVC's hash of a dependency, or a placeholder if a stage has yet to write it."""
        if out := _containing(dep, made):
            if dep == out:
                return made[out]
            if made[out].endswith(".dir"):
                within = dvc.folder_entries(self.cache, made[out])
                return within.get(dep.removeprefix(f"{out}/"), f"{made[out]}:{dep}")
            return f"{made[out]}:{dep}"
        if dep not in self._hashes:
            self._hashes[dep] = self.hash_source(dep)
        return self._hashes[dep]

    def hash_source(self, dep: str) -> str:
        """The hash of a file or folder that no stage writes, inside or outside the project."""
        path = self.project / dep
        return dvc.hash_path(path, self._is_ignored) if path.exists() else f"missing:{dep}"

    def _is_ignored(self, file: Path) -> bool:
        if not file.is_relative_to(self.project):  # `.dvcignore` is for the project
            return False
        return bool(self._ignored.match_file(file.relative_to(self.project)))

    def _cached_outs(self, stage: Stage, key: str) -> dict[str, str] | None:
        """The hashes of the stage's outs, if the cache has them all for this key."""
        for entry in self._entries(stage, key):
            outs = {out["path"]: out["md5"] for out in entry.get("outs", [])}
            if all(dvc.has_object(self.cache, digest) for digest in outs.values()):
                return outs
        return None

    def _entries(self, stage: Stage, key: str) -> Iterator[dict[str, Any]]:
        """The recorded runs of the key: that of `dvc.lock`, then the newest of the run cache."""
        locked = self._locked.get(stage.name)
        if locked and dvc.run_cache_key(dvc.recorded_inputs(locked)) == key:
            yield locked
        if newest := dvc.read_newest_run(self.cache, key):
            yield newest


def truncate(definition: Mapping[str, Any], until: str) -> dict[str, Any]:
    """A `dvc.yaml` without the stages after `until`, except `report`, which reads what there is.

    The entries of the other stages, and so their keys in the run cache, do not change.

    Raises:
        LoradagError: there is no stage `until`, or a stage that stays depends on a later one.
    """
    stages: dict[str, Any] = definition["stages"]
    if until not in stages:
        raise LoradagError(
            f"sweep.until = {until!r}: dvc.yaml has no such stage. Use one of {', '.join(stages)}."
        )
    names = list(stages)
    dropped = {name for name in names[names.index(until) + 1 :] if name != REPORT}
    outs = [out for name in dropped for out in out_paths(stages[name])]
    kept = {name: dict(entry) for name, entry in stages.items() if name not in dropped}
    for name, entry in kept.items():
        unmade = [dep for dep in entry.get("deps", []) if _containing(dep, outs)]
        if unmade and name != REPORT:
            raise LoradagError(
                f"sweep.until = {until!r}: {name} reads {', '.join(unmade)}, which a later stage "
                "of dvc.yaml writes. List the stages there in the order in which they run."
            )
        entry["deps"] = [dep for dep in entry.get("deps", []) if dep not in unmade]
    return {**definition, "stages": kept}


def out_paths(entry: Mapping[str, Any]) -> list[str]:
    """The paths that a stage of `dvc.yaml` writes."""
    return [
        out if isinstance(out, str) else next(iter(out))
        for kind in ("outs", "metrics", "plots")
        for out in entry.get(kind, [])
    ]


def _stage(name: str, entry: Mapping[str, Any], params: Mapping[str, Any]) -> Stage:
    """The stage of an entry of `dvc.yaml`, with `${...}` filled in from `params`."""

    def filled(text: str) -> str:
        return re.sub(r"\$\{(.+?)\}", lambda match: str(_select(params, match[1].strip())), text)

    outs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    options = [next(iter(out.values())) if isinstance(out, dict) else {} for out in outs]
    return Stage(
        name,
        filled(entry["cmd"]),
        tuple(filled(dep) for dep in entry.get("deps", [])),
        tuple(entry.get("params", [])),
        tuple(filled(out) for out in out_paths(entry)),
        cacheable=bool(outs) and not any(option.get("persist") for option in options),
    )


def _select(params: Mapping[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def _containing(dep: str, outs: Mapping[str, Any] | Sequence[str]) -> str | None:
    """The path in `outs` that is `dep` or contains it."""
    return next((out for out in outs if dep == out or dep.startswith(f"{out}/")), None)
