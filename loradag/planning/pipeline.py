"""Which stages of `dvc.yaml` would run for some params, and which come from DVC's cache.

DVC keys its run cache by a hash of command, dependencies' hashes, params and outs' paths. The same
key is made here from the files themselves: loading DVC and a project in it takes a second for each
job, this takes milliseconds. `tests/planning/test_pipeline.py` holds the two together.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

# The C loader where PyYAML has it: run-cache entries are read by the dozen.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StageStatus(StrEnum):
    """What becomes of a stage."""

    CACHED = "cached"
    RUNS = "runs"
    ALWAYS = "always"  # `persist` keeps a stage out of the run cache: it runs in every job


@dataclass(frozen=True)
class Stage:
    name: str
    cmd: str
    deps: tuple[str, ...]
    params: tuple[str, ...]
    outs: tuple[str, ...]
    cacheable: bool


@dataclass(frozen=True)
class Planned:
    """A stage of one job. Equal keys are equal inputs: such a stage runs once in a sweep."""

    name: str
    key: str
    status: StageStatus
    outs: Mapping[str, str]  # path: hash; of a stage that runs, what stands for it


class Pipeline:
    """The stages of a project, its files and its cache, as they are now."""

    def __init__(self, project: Path, cache: Path) -> None:
        self.project = project
        self.cache = cache
        self._hashes: dict[str, str] = {}

    @cached_property
    def _definition(self) -> dict[str, Any]:
        return _load(self.project / "dvc.yaml")["stages"]  # type: ignore[no-any-return]

    @cached_property
    def _ignored(self) -> Any:
        from pathspec import GitIgnoreSpec

        path = self.project / ".dvcignore"
        lines = path.read_text().splitlines() if path.exists() else []
        return GitIgnoreSpec.from_lines(lines)

    @cached_property
    def _locked(self) -> dict[str, Any]:
        path = self.project / "dvc.lock"
        return _load(path).get("stages", {}) if path.exists() else {}

    def plan(self, params: Mapping[str, Any]) -> list[Planned]:
        """The stages in order, for `params` by section."""
        planned: list[Planned] = []
        made: dict[str, str] = {}  # out: hash; of a stage that will run, what stands for it
        for stage in self.stages(params):
            key = run_cache_key(stage, [self._hash(dep, made) for dep in stage.deps], params)
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
        """The stages, each after those whose outs it reads."""
        stages = [_stage(name, entry, params) for name, entry in self._definition.items()]
        done: list[Stage] = []
        while waiting := [stage for stage in stages if stage not in done]:
            missing = [out for stage in waiting for out in stage.outs]
            ready = [s for s in waiting if not any(_below(d, missing) for d in s.deps)]
            if not ready:
                raise ValueError("dvc.yaml: stages that depend on each other")
            done += ready
        return done

    def token_lengths(self, planned: Sequence[Planned]) -> dict[str, Any] | None:
        """`token_length` of prepare's report, where the cache has it."""
        for stage in planned:
            if stage.name == "prepare" and stage.status is StageStatus.CACHED:
                report = json.loads(self._object(stage.outs["reports/prepare.json"]).read_text())
                return report["token_length"]  # type: ignore[no-any-return]
        return None

    def _hash(self, dep: str, made: Mapping[str, str]) -> str:
        """MD5 of a dependency as DVC takes it, or what stands for one that is yet to be made."""
        if dep in made:
            return made[dep]
        if out := _below(dep, made):
            if made[out].endswith(".dir"):
                entries = json.loads(self._object(made[out]).read_text())
                within = {f"{out}/{entry['relpath']}": entry["md5"] for entry in entries}
                return str(within.get(dep, f"{made[out]}:{dep}"))
            return f"{made[out]}:{dep}"
        if dep not in self._hashes:
            self._hashes[dep] = self._hash_source(dep)
        return self._hashes[dep]

    def _hash_source(self, dep: str) -> str:
        path = self.project / dep
        if not path.is_dir():
            return _md5(path.read_bytes()) if path.exists() else f"missing:{dep}"
        entries = [
            {"md5": _md5(file.read_bytes()), "relpath": file.relative_to(path).as_posix()}
            for file in path.rglob("*")
            if file.is_file() and not self._ignored.match_file(file.relative_to(self.project))
        ]
        entries.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
        return _md5(json.dumps(entries).encode()) + ".dir"

    def _cached_outs(self, stage: Stage, key: str) -> dict[str, str] | None:
        """The hashes of the stage's outs, if the cache holds them all for this key."""
        for entry in self._entries(stage, key):
            outs = {out["path"]: out["md5"] for out in entry.get("outs", [])}
            if all(self._has(digest) for digest in outs.values()):
                return outs
        return None

    def _entries(self, stage: Stage, key: str) -> Iterator[dict[str, Any]]:
        """What is known of the key: by the project's own `dvc.lock`, then by the run cache."""
        locked = self._locked.get(stage.name)
        if locked and _locked_key(locked) == key:
            yield locked
        folder = self.cache / "runs" / key[:2] / key
        if folder.is_dir():
            newest = max(folder.iterdir(), key=lambda path: path.stat().st_mtime)  # as DVC does
            yield _load(newest)

    def _object(self, digest: str) -> Path:
        return self.cache / "files/md5" / digest[:2] / digest[2:]

    def _has(self, digest: str) -> bool:
        path = self._object(digest)
        if not path.exists():
            return False
        if not digest.endswith(".dir"):
            return True
        return all(self._object(e["md5"]).exists() for e in json.loads(path.read_text()))


def run_cache_key(stage: Stage, hashes: Sequence[str], params: Mapping[str, Any]) -> str:
    """DVC's key of the stage in its run cache, for the `hashes` of its deps."""
    deps = sorted(zip(stage.deps, hashes, strict=True))
    return _key(
        stage.cmd,
        [{"path": path, "hash": "md5", "md5": digest} for path, digest in deps],
        {"params.yaml": {name: _select(params, name) for name in sorted(stage.params)}},
        sorted(stage.outs),
    )


def _locked_key(entry: Mapping[str, Any]) -> str:
    deps = [{k: dep[k] for k in ("path", "hash", "md5") if k in dep} for dep in entry["deps"]]
    return _key(entry["cmd"], deps, entry.get("params"), [o["path"] for o in entry.get("outs", [])])


def _key(cmd: str, deps: Any, params: Any, outs: Any) -> str:
    content = {"cmd": cmd, "deps": deps, "params": params, "outs": outs}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _stage(name: str, entry: Mapping[str, Any], params: Mapping[str, Any]) -> Stage:
    """A stage of `dvc.yaml` with its `${...}` filled in."""

    def filled(text: str) -> str:
        return re.sub(r"\$\{(.+?)\}", lambda match: str(_select(params, match[1].strip())), text)

    outs = [out for kind in ("outs", "metrics", "plots") for out in entry.get(kind, [])]
    options = [next(iter(out.values())) if isinstance(out, dict) else {} for out in outs]
    names = [out if isinstance(out, str) else next(iter(out)) for out in outs]
    return Stage(
        name,
        filled(entry["cmd"]),
        tuple(filled(dep) for dep in entry.get("deps", [])),
        tuple(entry.get("params", [])),
        tuple(filled(out) for out in names),
        cacheable=bool(outs) and not any(option.get("persist") for option in options),
    )


def _select(params: Mapping[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def _below(dep: str, outs: Mapping[str, Any] | Sequence[str]) -> str | None:
    """The one of `outs` that holds `dep`, or is it."""
    return next((out for out in outs if dep == out or dep.startswith(f"{out}/")), None)


def _load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(encoding="utf-8"), LOADER)  # type: ignore[no-any-return]


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
