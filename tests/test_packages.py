"""The packages of loradag/: which imports which, and the diagram of it in CONTRIBUTING.md."""

import re
from collections import defaultdict
from graphlib import TopologicalSorter

from tests.conftest import ROOT
from tests.test_contract import first_party_imports

LIBRARY = ROOT / "loradag"
Edges = set[tuple[str, str]]


def imports() -> Edges:
    """(package, a package that it imports), for all packages of loradag/."""
    edges = set()
    for path in LIBRARY.rglob("*.py"):
        for imported in first_party_imports(path):
            if LIBRARY in imported.parents and imported.parent != LIBRARY:
                edges.add((path.parent.name, imported.parent.name))
    return {(one, other) for one, other in edges if one != other}


def without_implied(edges: Edges) -> Edges:
    """The transitive reduction: without those that others imply."""

    def reached(start: str, without: tuple[str, str]) -> set[str]:
        todo, seen = [start], set()
        while todo:
            here = todo.pop()
            for edge in edges - {without}:
                if edge[0] == here and edge[1] not in seen:
                    seen.add(edge[1])
                    todo.append(edge[1])
        return seen

    return {edge for edge in edges if edge[1] not in reached(edge[0], edge)}


def test_packages_do_not_import_in_a_circle() -> None:
    graph = defaultdict(set)
    for one, other in imports():
        graph[one].add(other)
    order = list(TopologicalSorter(graph).static_order())  # CycleError names the packages
    assert order[0] == "config"


def test_the_diagram_is_what_the_code_imports() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", text, re.MULTILINE))
    expected = without_implied(imports())
    lines = "\n".join(f"    {one} --> {other}" for one, other in sorted(expected))
    assert drawn == expected, f"write this diagram into CONTRIBUTING.md:\n{lines}"


def test_every_package_is_described() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    packages = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert described == packages


def test_a_file_name_occurs_in_one_package() -> None:
    folders = defaultdict(set)
    for path in LIBRARY.rglob("*.py"):
        folders[path.name].add(path.parent.name)
    del folders["__init__.py"]
    assert {name: found for name, found in folders.items() if len(found) > 1} == {}


def test_the_files_that_it_names_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:loradag|conf|stages|tests)/[\w/]+\.(?:py|yaml))`", text)
    assert named
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    assert missing == [name for name in missing if "LIBRARY" in name]
