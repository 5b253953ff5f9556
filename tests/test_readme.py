"""The README says what is there, and its commands are commands."""

import re
import subprocess

import pytest
import yaml

from loradag.config.composition import compose
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:bash)?\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.split("#")[0].strip()
    for block in BLOCKS
    for line in block.splitlines()
    if re.match(r"(make|dvc|python) ", line)
]


def test_its_file_tree_is_the_disk() -> None:
    tree = next(block for block in BLOCKS if "conf/" in block and "stages/" in block)
    named = set()
    parents: list[str] = []
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.split("  ")[depth].split() if line.strip() else []:
            parents[depth:] = [name]
            named.add("/".join(part.rstrip("/") for part in parents))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    scripts = {name for name in tracked if re.fullmatch(r"stages/\w+\.py", name)} | {
        name.rsplit("/", 1)[0] for name in tracked if re.fullmatch(r"stages/\w+/\w+\.py", name)
    }
    assert scripts - {"stages/__init__.py"} <= named


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_there(command) -> None:
    program, *words = command.split()
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif program == "python":
        assert words[0] == "-m"
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").exists() or (module / "__main__.py").exists()
    else:
        assert words[0] in ("repro", "exp", "metrics", "plots", "dag", "params", "status")
    sets = [words[at + 1] for at, word in enumerate(words) if word == "-S"]
    if sets:
        compose(sets)


def test_its_table_says_what_the_committed_reports_say() -> None:
    import json

    evaluated = json.loads((ROOT / "reports/evaluate.json").read_text())
    for name in ("base", "quantized", "adapter"):
        assert re.search(rf"\| *{name}\b.*\b{evaluated[name]['perplexity']:.1f}\b", README), name


def test_every_stage_of_the_dag_is_drawn() -> None:
    drawing = BLOCKS[0]
    for stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]:
        assert stage in drawing
