"""Checkpoints outside the stage's outs, keyed by all that shapes the result.

DVC deletes a stage's outs before it runs; what lies here stays, so that an interrupted training
goes on, and one with other inputs never picks up a foreign checkpoint.
"""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def inputs_key(options: Any, files: Iterable[Path]) -> str:
    """Hash of options (plain containers), of the files' contents and of the libraries' versions."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name in ("torch", "transformers", "peft", "trl", "bitsandbytes", "torchao"):
        digest.update(f"{name}=={importlib.metadata.version(name)}".encode())
    for path in sorted(files):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`; broken ones are deleted.

    The trainer writes its state last: a checkpoint without a readable one was cut short.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=_step, reverse=True):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))
