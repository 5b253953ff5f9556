"""Commands whose output goes to a reader that leaves, as in `… | head -1`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loradag.config.composition import compose, write_params
from tests.conftest import ROOT


def run_without_reader(project: Path, *arguments: str) -> tuple[int, str]:
    """The exit code and what stands on standard error."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=project, stdout=writer, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, check=False,
    )  # fmt: skip
    os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [["generate", "--help"], ["plan"], ["doctor"]])
def test_a_reader_that_leaves_ends_a_command_quietly(command) -> None:
    name, *arguments = command
    assert run_without_reader(ROOT, f"stages.{name}", *arguments) == (1, "")


def test_a_reader_that_leaves_ends_the_generation_quietly(trained, tmp_path) -> None:
    write_params(compose(["experiment=smoke"]), tmp_path)
    for folder in ("artifacts", "data"):
        (tmp_path / folder).symlink_to(trained[0].root / folder)
    arguments = ("stages.generate", "prompt=Less is", "max_new_tokens=5")
    code, errors = run_without_reader(tmp_path, *arguments)
    assert code == 1
    assert "Traceback" not in errors  # a bar is there
    assert "Exception ignored" not in errors
