"""DVC's cache, lock file and run-cache key, read from their files.

Why: DVC has no public way to ask for the key of a stage, or which stages would come from the cache;
loading its classes takes a second for each configuration, reading the files takes milliseconds.
Versions: the layout and the key are those of DVC 3 (tried: 3.67); `tests/compat/test_dvc.py`
compares them with what DVC writes, and a sweep compares the key of every stage that it executes.
Unnecessary once DVC answers both questions itself, e.g. in `dvc status --json`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML


def cache_folder(project: Path) -> Path:
    """The cache of `project`, from whatever level of DVC's configuration it is set at."""
    from dvc.config import Config

    # DVC resolves a relative `cache.dir` against the file that sets it.
    configured = Config(str(project / ".dvc")).get("cache", {}).get("dir")
    return Path(configured) if configured else project / ".dvc/cache"


def read_yaml(path: Path) -> Any:
    """A file as DVC reads it, by YAML 1.2: `1e-05` is a number, `yes` a text; PyYAML differs."""
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def write_yaml(path: Path, content: Any) -> None:
    with path.open("w", encoding="utf-8") as file:
        YAML().dump(content, file)


def read_lock(project: Path) -> dict[str, dict[str, Any]]:
    """The stages of `dvc.lock`: what DVC recorded of each when it last ran or was restored."""
    path = project / "dvc.lock"
    return read_yaml(path).get("stages", {}) if path.exists() else {}


def recorded_inputs(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the key is a hash of, from an entry of `dvc.lock` or of the run cache."""
    deps = [
        {key: dep[key] for key in ("path", "hash", "md5") if key in dep}
        for dep in entry.get("deps", [])
    ]
    outs = [out["path"] for out in entry.get("outs", [])]
    params = {"params": entry["params"]} if "params" in entry else {}
    return {"cmd": entry["cmd"], "deps": deps, "outs": outs, **params}


def run_cache_key(inputs: Mapping[str, Any]) -> str:
    """DVC's key of a stage in its run cache: SHA-256 over `cmd`, `deps`, `outs` and any `params`.

    Deps and outs are sorted by path. Outs count by path alone.
    """
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def read_newest_run(cache: Path, key: str) -> dict[str, Any] | None:
    """What the run cache has for a key; of several results the newest, as DVC takes it."""
    folder = cache / "runs" / key[:2] / key
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return read_yaml(max(entries, key=lambda path: path.stat().st_mtime)) if entries else None


def forget_runs(cache: Path, key: str) -> None:
    """Delete what the run cache has for a key, so that the stage runs anew for these inputs."""
    shutil.rmtree(cache / "runs" / key[:2] / key, ignore_errors=True)


def object_path(cache: Path, digest: str) -> Path:
    """Where the cache has a file, or with a hash that ends in `.dir` the list of a folder."""
    return cache / "files/md5" / digest[:2] / digest[2:]


def folder_entries(cache: Path, digest: str) -> dict[str, str]:
    """`{path within the folder: hash}` of a folder in the cache."""
    entries = json.loads(object_path(cache, digest).read_text(encoding="utf-8"))
    return {entry["relpath"]: entry["md5"] for entry in entries}


def has_object(cache: Path, digest: str) -> bool:
    """Whether the cache has a file, or a folder with all its files."""
    if not object_path(cache, digest).exists():
        return False
    if not digest.endswith(".dir"):
        return True
    return all(object_path(cache, md5).exists() for md5 in folder_entries(cache, digest).values())


def hash_path(path: Path, ignored: Callable[[Path], bool]) -> str:
    """MD5 of a file; of a folder, MD5 over the list of its files, and `.dir`.

    Args:
        path: what to hash. Links to files are followed, links to folders within it are not.
        ignored: whether `.dvcignore` leaves out a file.
    """
    if not path.is_dir():
        return _hash_file(path)
    entries = [
        {"md5": _hash_file(file), "relpath": file.relative_to(path).as_posix()}
        for file in path.rglob("*")
        if file.is_file() and not ignored(file)
    ]
    entries.sort(key=lambda entry: tuple(entry["relpath"].split("/")))
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
