"""DVC's cache, lock file and run-cache key, read from their files.

Why: DVC has no public way to ask for the key of a stage, or which stages would come from the cache;
loading its classes takes a second for each configuration, reading the files takes milliseconds.
Versions: the layout and the key are those of DVC 3 (tried: 3.67); `tests/compat/test_dvc.py`
compares them with what DVC writes, and a sweep compares the key of every stage that it executes.
Unnecessary once DVC answers both questions itself, e.g. in `dvc status --json`.

The run cache and a remote go through `Repo.stage_cache` and `Repo.cloud`, which no page of DVC's
documents; the functions give the reasons.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from loradag.config.problems import LoradagError

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo


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


def push_runs(project: Path) -> None:
    """Copy the run cache of `project` and every file that it names to the default remote.

    Why: `dvc push --run-cache` copies the entries of the run cache, but of their files only those
    that `dvc.lock` names and that are no metrics or plots with `cache: false`. Elsewhere a stage
    without one of its files runs again. Unnecessary once it pushes what the entries name.

    Raises:
        LoradagError: there is no remote, or it does not take a file.
    """
    cache = cache_folder(project)
    entries = [read_yaml(path) for path in cache.glob("runs/*/*/*")]
    hashes = {
        digest
        for entry in entries
        if _has_outs(cache, entry)  # not what `dvc gc` has deleted
        for out in entry.get("outs", [])
        for digest in _object_hashes(cache, out["md5"])
    }
    with _open(project) as repo:
        # The files first: whoever finds an entry finds its files.
        if failed := repo.cloud.push(_hash_infos(hashes)).failed:
            raise LoradagError(f"{len(failed)} files could not be pushed to the DVC remote.")
        repo.stage_cache.push(None)


def pull_runs(project: Path) -> None:
    """Copy the entries of the run cache from the default remote, without the files they name.

    Why: `Repo.fetch(run_cache=True)` also fetches all that `dvc.lock` names.

    Raises:
        LoradagError: there is no remote, or it does not answer.
    """
    with _open(project) as repo:
        repo.stage_cache.pull(None)


def pull_files(project: Path, key: str) -> None:
    """Copy the files of the newest run of `key` from the default remote, where any is missing.

    Why: `Repo.reproduce(pull=True)` does it too, but copies all entries of the run cache each time,
    and needs the remote in the configuration of the folder that it runs in.

    Raises:
        LoradagError: the remote does not answer.
    """
    cache = cache_folder(project)
    entry = read_newest_run(cache, key)
    if entry is None or _has_outs(cache, entry):
        return
    outs = {out["md5"] for out in entry["outs"]}
    with _open(project) as repo:
        repo.cloud.pull(_hash_infos(outs))
        found = {digest for digest in outs if object_path(cache, digest).exists()}
        repo.cloud.pull(_hash_infos({d for out in found for d in _object_hashes(cache, out)}))


def _has_outs(cache: Path, entry: Mapping[str, Any]) -> bool:
    return all(has_object(cache, out["md5"]) for out in entry.get("outs", []))


def _object_hashes(cache: Path, digest: str) -> list[str]:
    """Of a file its hash; of a folder those of its list and of its files."""
    within = folder_entries(cache, digest).values() if digest.endswith(".dir") else ()
    return [digest, *within]


def _hash_infos(hashes: Iterable[str]) -> set[HashInfo]:
    from dvc_data.hashfile.hash_info import HashInfo

    return {HashInfo("md5", digest) for digest in hashes}


@contextmanager
def _open(project: Path) -> Iterator[Repo]:
    """The repository of `project`, to reach its remote; what fails is a LoradagError."""
    from dvc.config import NoRemoteError
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            repo.cloud.get_remote()
            yield repo
    except LoradagError:
        raise
    except NoRemoteError as error:
        raise LoradagError(
            "DVC has no default remote. Set one: `dvc remote add --default NAME URL`."
        ) from error
    except Exception as error:  # each kind of remote has its own
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise LoradagError(f"the DVC remote cannot be used: {reason}") from error


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
