"""Counts the real stages as Python starts them, wherever the process comes from."""

from pathlib import Path

# Python imports `sitecustomize` at its start. $COUNTED: the file that gets a line a stage.
COUNTING = """
import os, sys
if len(sys.orig_argv) == 3 and sys.orig_argv[2].startswith("stages."):
    with open(os.environ["COUNTED"], "a") as log:
        log.write(sys.orig_argv[2].removeprefix("stages.") + "\\n")
"""


def count_stages(folder: Path) -> None:
    """Make `folder`, which belongs onto PYTHONPATH."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(COUNTING)
