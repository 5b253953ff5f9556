"""Where a run comes from: the commit, the state of the DAG, what ran and what was cached."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from loradag.runtime import Paths, write_json
from loradag.runtime.stage import has_run
from loradag.tracking.flattening import leaves


def source_tags(root: Path) -> dict[str, str]:
    """Commit and branch as MLflow tags them, DVC's experiment, the state of the DAG.

    What is not there (a sweep's workspace is no Git repository) has no tag.
    """
    tags = {
        "mlflow.source.git.commit": _git(root, "rev-parse", "HEAD"),
        "mlflow.source.git.branch": _git(root, "symbolic-ref", "--short", "HEAD"),
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.lock": lock_hash(root / "dvc.lock"),
        "data": data_hash(root / "dvc.lock"),
    }
    return {key: value for key, value in tags.items() if value}


def changed_params(root: Path, params: Mapping[str, Any]) -> set[str]:
    """The flat keys of `params` whose values differ from the committed `params.yaml`."""
    shown = _git(root, "show", "HEAD:./params.yaml")
    if shown is None:
        return set()
    committed: Any = OmegaConf.to_container(OmegaConf.create(shown))
    before = dict(leaves(committed))
    return {key for key, value in leaves(params) if key not in before or before[key] != value}


def _git(root: Path, *arguments: str) -> str | None:
    """What Git prints; None where there is no Git, no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def lock_hash(lock: Path) -> str | None:
    """SHA-256 of what `dvc.lock` says of every stage but `report`, which is not in it yet.

    Equal hashes: the same code, params, inputs and outs.
    """
    if not lock.exists():
        return None
    content: Any = OmegaConf.to_container(OmegaConf.load(lock))
    stages = {stage: entry for stage, entry in content["stages"].items() if stage != "report"}
    return hashlib.sha256(json.dumps(stages, sort_keys=True).encode()).hexdigest()


def data_hash(lock: Path) -> str | None:
    """DVC's hash of the prepared rows."""
    if not lock.exists():
        return None
    content: Any = OmegaConf.to_container(OmegaConf.load(lock))
    outs = content["stages"].get("prepare", {}).get("outs", [])
    return outs[0]["md5"] if outs else None


def stages_ran(paths: Paths, stages: Iterable[str]) -> dict[str, bool]:
    """For each stage, whether it ran since the last run was published; False: it was cached."""
    published = _published(paths)
    return {
        stage: has_run(paths, stage) and _digest(paths, stage) != published.get(stage)
        for stage in stages
    }


def stage_tags(ran: Mapping[str, bool | None]) -> dict[str, str]:
    """`stage.NAME` for each stage; None: it is no part of this run."""
    words = {True: "ran", False: "cached", None: "not run"}
    return {f"stage.{stage}": words[did] for stage, did in ran.items()}


def mark_published(paths: Paths, stages: Iterable[str]) -> None:
    """Remember the reports of this run, so that the next one knows which it only took over."""
    write_json(paths.state / "published.json", {stage: _digest(paths, stage) for stage in stages})


def _published(paths: Paths) -> dict[str, str]:
    path = paths.state / "published.json"
    published: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    return published


def _digest(paths: Paths, stage: str) -> str:
    return hashlib.sha256(paths.report(stage).read_bytes()).hexdigest()
