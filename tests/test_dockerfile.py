"""The Dockerfile's steps, run in a folder instead of an image."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of every step, continued lines joined."""
    lines = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def is_ignored(name: str) -> bool:
    """Whether .dockerignore keeps the file out of every COPY."""
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    return any(
        fnmatch.fnmatch(name if rule == plain else Path(name).name, plain)
        or name.startswith(f"{rule}/")
        for rule in rules
        for plain in [rule.removeprefix("**/")]
    )


def sources(pattern: str) -> list[Path]:
    """The tracked files that a COPY takes, without those of .dockerignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    kept = [name for name in filter(None, listed) if not is_ignored(name)]
    return [
        Path(name) for name in kept if pattern == "." or name == pattern
        or name.startswith(f"{pattern}/")
    ]  # fmt: skip


def copy(arguments: str, work: Path) -> None:
    *patterns, _ = arguments.split()
    for pattern in patterns:
        found = sources(pattern)
        assert found, f"COPY {pattern}: no such file"
        for path in found:
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / path, work / path)


def test_every_copied_file_exists_and_no_secret_is_set() -> None:
    for instruction, arguments in instructions():
        if instruction == "COPY":
            assert all(sources(pattern) for pattern in arguments.split()[:-1]), arguments
        if instruction in ("ENV", "ARG"):
            assert "TOKEN" not in arguments
    assert not any(path.parts[0] in (".git", "multirun") for path in sources("."))


@pytest.mark.parametrize("name", [".env", "docs/.env", ".dvc/config.local", ".dvc/cache/files/x"])
def test_what_may_hold_secrets_or_is_large_is_not_copied(name: str) -> None:
    assert is_ignored(name)


def test_the_image_has_the_python_that_the_project_requires() -> None:
    version = re.search(r"FROM python:(\d+)\.(\d+)", TEXT)
    required = re.search(
        r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    assert version is not None
    assert required is not None
    assert tuple(map(int, version.groups())) >= tuple(map(int, required.groups()))


@pytest.mark.slow
def test_its_steps_make_an_environment_that_works(tmp_path: Path) -> None:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VIRTUAL", "PYTHON"))
    } | {"TORCH_INDEX": os.environ.get("TORCH_INDEX", ""), "PYTHON": sys.executable}
    for instruction, arguments in instructions():
        if instruction == "COPY":
            copy(arguments, tmp_path)
        elif instruction == "RUN" and not arguments.startswith("apt-get"):
            subprocess.run(arguments, shell=True, cwd=tmp_path, env=environment, check=True)
    environment["PATH"] = f"{tmp_path}/.venv/bin:{environment['PATH']}"
    for command in ("dvc --version", "python -m stages.plan", "python -m stages.doctor"):
        subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True)
