"""The contracts between a stage's code and its entry in `dvc.yaml`."""

import ast
import dataclasses
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradag.config.schema import Config
from tests.conftest import ROOT

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
SHARED = ("model", "adapter", "seed")  # sections that are no stage
UNDECLARED = ("runtime", "sweep", "checked")  # what cannot change an output


def names(entries: list[Any]) -> set[str]:
    """Paths of a `dvc.yaml` list whose entries may carry options."""
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


@cache
def first_party_imports(path: Path) -> frozenset[Path]:
    """The modules that a module imports, also inside functions, and their packages."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            if module.split(".")[0] in ("conf", "stages"):
                found |= _files_of(module)
    return frozenset(found)


def _files_of(module: str) -> set[Path]:
    parts = module.split(".")
    found = set()
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file() and not _only_says(path):
                found.add(path)
    return found


def _only_says(path: Path) -> bool:
    """Whether a module is a docstring and nothing else: no output can depend on it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) for node in body)


def reached(script: Path) -> set[Path]:
    todo, seen = [script], set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            todo += first_party_imports(path)
    return seen


@pytest.mark.parametrize("name", STAGES)
def test_signature_params_and_sections_are_the_same(name: str) -> None:
    function = getattr(importlib.import_module(f"stages.{name}"), name)
    first, *sections = inspect.signature(function).parameters
    assert first == "paths"
    assert sorted(sections) == sorted(STAGES[name]["params"])
    assert {f.name for f in dataclasses.fields(Config)} >= set(sections)
    assert not set(sections) & set(UNDECLARED)


@pytest.mark.parametrize("name", STAGES)
def test_deps_hold_every_module_that_the_stage_imports(name: str) -> None:
    deps = [ROOT / dep for dep in names(STAGES[name]["deps"]) if not dep.startswith("$")]
    missing = [
        str(path.relative_to(ROOT))
        for path in reached(ROOT / f"stages/{name}.py")
        if not any(dep == path or dep in path.parents for dep in deps)
    ]
    assert not missing, f"{name}: add to its deps in dvc.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_deps_hold_no_module_that_the_stage_does_not_import(name: str) -> None:
    modules = reached(ROOT / f"stages/{name}.py")
    code = [ROOT / dep for dep in names(STAGES[name]["deps"]) if dep.startswith(("stages", "conf"))]
    idle = [
        str(dep.relative_to(ROOT))
        for dep in code
        if not any(dep == path or dep in path.parents for path in modules)
    ]
    assert not idle, f"{name}: take out of its deps in dvc.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_short_script_of_its_name(name: str) -> None:
    path = ROOT / f"stages/{name}.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert STAGES[name]["cmd"] == f"python -m stages.{name}"
    assert len(lines) <= 100
    assert f"    run_stage({name})" in lines


def test_every_section_is_a_stage_or_a_shared_noun_and_every_group_has_its_folder() -> None:
    sections = {f.name for f in dataclasses.fields(Config)} - set(UNDECLARED)
    assert sections <= {*STAGES, *SHARED}
    for section in sections - {"seed"}:
        assert list((ROOT / "conf" / section).glob("*.yaml"))


def test_a_section_that_a_stage_reads_reruns_it_and_no_earlier_one() -> None:
    """Sections reach a stage by its params alone: no stage reads `params.yaml` by itself."""
    for path in (ROOT / "stages").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "load_config(" in text:
            assert path.name in ("stage.py", "generate.py") or path.parent.name == "sweeps", path


def test_only_the_report_stays_out_of_the_run_cache() -> None:
    persisted = [
        name
        for name, stage in STAGES.items()
        for out in stage.get("outs", [])
        if isinstance(out, dict) and next(iter(out.values())).get("persist")
    ]
    assert persisted == ["report"]
