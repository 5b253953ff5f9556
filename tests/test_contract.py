"""The contracts between a stage's code and its entry in `dvc.yaml`."""

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradag.config.sections import Config
from loradag.runtime.report_files import report_type
from tests.conftest import ROOT

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
SHARED = ("model", "adapter", "launch", "seed")  # sections that are no stage
UNDECLARED = ("runtime", "sweep", "inputs", "checked")  # what cannot change an output


def names(entries: list[Any]) -> set[str]:
    """Paths of a `dvc.yaml` list whose entries may carry options."""
    return {next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries}


# Modules that cannot change what a stage writes, though it imports them. `report` alone writes
# pages and the MLflow run, so there they are no exception.
NEUTRAL = (
    "loradag/config",  # types and rules: a value reaches a stage through its params
    "loradag/runtime",  # how a stage is run and watched
    "loradag/tracking",  # MLflow
    "loradag/training/guards.py",  # refuses a training, and changes none
    "loradag/export/feasibility.py",  # likewise
)
NEUTRAL_FOR_REPORT = ("loradag/config", "loradag/runtime")


@cache
def first_party_imports(path: Path) -> frozenset[Path]:
    """The modules that a module imports, also inside functions, and their packages."""
    found: set[Path] = set()
    for node in _walk(ast.parse(path.read_text(encoding="utf-8"))):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for module in modules:
            if module.split(".")[0] in ("conf", "loradag", "stages"):
                found |= _files_of(module)
    return frozenset(found)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below `node`, without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            continue
        yield child
        yield from _walk(child)


def _files_of(module: str) -> set[Path]:
    parts = module.split(".")
    found = set()
    for depth in range(1, len(parts) + 1):
        base = ROOT.joinpath(*parts[:depth])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file() and not _is_docstring(path):
                found.add(path)
    return found


def _is_docstring(path: Path) -> bool:
    """Whether a module is a docstring and nothing else: no output can depend on it."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) for node in body)


def computing_modules(name: str) -> set[Path]:
    """The modules that the stage `name` reaches and that can change what it writes."""
    neutral = [ROOT / path for path in (NEUTRAL_FOR_REPORT if name == "report" else NEUTRAL)]
    todo, seen = [ROOT / f"stages/{name}.py"], set()
    while todo:
        path = todo.pop()
        if path in seen or any(path == other or other in path.parents for other in neutral):
            continue
        seen.add(path)
        todo += first_party_imports(path)
    return seen


def expected_deps(name: str) -> list[str]:
    """The code deps of a stage: a folder where all of its modules compute, else the modules."""
    modules = computing_modules(name)
    deps = set()
    for module in modules:
        siblings = {path for path in module.parent.rglob("*.py") if not _is_docstring(path)}
        is_whole = module.parent.parent == ROOT / "loradag" and siblings <= modules
        deps.add((module.parent if is_whole else module).relative_to(ROOT).as_posix())
    return sorted(deps)


@pytest.mark.parametrize("name", STAGES)
def test_signature_params_and_sections_are_the_same(name: str) -> None:
    function = getattr(importlib.import_module(f"stages.{name}"), name)
    first, *sections = inspect.signature(function).parameters
    assert first == "paths"
    assert sorted(sections) == sorted({param.split(".")[0] for param in STAGES[name]["params"]})
    assert {f.name for f in dataclasses.fields(Config)} >= set(sections)
    assert not set(sections) & set(UNDECLARED)


@pytest.mark.parametrize("name", [name for name in STAGES if name != "report"])
def test_a_stage_returns_its_report(name: str) -> None:
    function = getattr(importlib.import_module(f"stages.{name}"), name)
    assert inspect.signature(function).return_annotation is report_type(name)
    assert f"reports/{name}.json" in names(STAGES[name]["metrics"])


@pytest.mark.parametrize("name", STAGES)
def test_of_a_section_declared_in_part_a_stage_reads_those_keys_and_no_others(name: str) -> None:
    declared = {param for param in STAGES[name]["params"] if "." in param}
    sections = {param.split(".")[0] for param in declared}
    script = ast.parse((ROOT / f"stages/{name}.py").read_text(encoding="utf-8"))
    uses = [n for n in ast.walk(script) if isinstance(n, ast.Name) and n.id in sections]
    read = [n for n in ast.walk(script) if isinstance(n, ast.Attribute) and n.value in uses]
    assert {f"{n.value.id}.{n.attr}" for n in read} == declared
    assert len(read) == len(uses), "the section itself is passed on"


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_modules_that_compute_and_no_others(name: str) -> None:
    declared = [
        dep for dep in names(STAGES[name]["deps"]) if dep.startswith(("conf", "loradag", "stages"))
    ]
    assert sorted(declared) == expected_deps(name), f"{name}: write these deps into dvc.yaml"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_a_short_script_of_its_name(name: str) -> None:
    path = ROOT / f"stages/{name}.py"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert STAGES[name]["cmd"] == f"python -m stages.{name}"
    assert len(lines) <= 100
    assert any(line.startswith(f"    run_stage({name}") for line in lines)


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
