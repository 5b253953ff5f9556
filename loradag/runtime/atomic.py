"""Atomic writes: an output is written to a sibling and then renamed."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a sibling of `path` to write to; on success it replaces `path`.

    The sibling does not exist yet: create it as a file or as a folder. After an exception it is
    deleted, and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    _delete(partial)
    try:
        yield partial
        if path.is_dir() and partial.is_dir():  # never replace a folder by a file
            _delete(path)
        os.replace(partial, path)
    except BaseException:
        _delete(partial)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON with sorted keys.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    with replacing(path) as partial:
        text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
