"""Checkpoints outside the stage's outs, keyed by everything that shapes the result.

DVC deletes a stage's outs before it runs; checkpoints stay, so that an interrupted training
continues. One with other inputs never continues from them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from loradag.runtime import Paths, exclusive

if TYPE_CHECKING:
    from transformers import TrainerState

STATE = "trainer_state.json"
LIBRARIES = (
    "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "torchao", "datasets",
)  # fmt: skip


def training_key(
    paths: Paths, options: Any, start: str | None = None, code: Path = Path(__file__).parents[2]
) -> str:
    """A hash of all that shapes a training's result; 16 hexadecimal digits.

    That is `options` (plain containers: params, resolved dtype, device), the contents of the
    input files, the code that `dvc.yaml` declares for the stage, and the libraries' versions.

    Args:
        start: the folder of an adapter that is continued.
        code: the folder of `dvc.yaml` and of the code that runs.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for name in LIBRARIES:
        digest.update(f"{name}=={importlib.metadata.version(name)}\0".encode())
    sources = [(code, code_files(code)), (paths.root, _input_files(paths))]
    if start is not None:
        folder = Path(start).expanduser()
        sources.append((folder, sorted(path for path in folder.rglob("*") if path.is_file())))
    for root, files in sources:
        for path in files:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def code_files(root: Path) -> list[Path]:
    """The Python files that `dvc.yaml` in `root` declares as deps of `train`."""
    pipeline: Any = OmegaConf.to_container(OmegaConf.load(root / "dvc.yaml"))
    files: set[Path] = set()
    for dep in pipeline["stages"]["train"]["deps"]:
        if dep.endswith(".py"):
            files.add(root / dep)
        elif (root / dep / "__init__.py").is_file():
            files.update((root / dep).rglob("*.py"))
    return sorted(files)


def _input_files(paths: Paths) -> list[Path]:
    """Prepared rows, base and quantized base. The base's weights are pinned by hash in a file."""
    return sorted(
        path
        for folder in (paths.prepared, paths.quantized, paths.base)
        for path in folder.rglob("*")
        if path.is_file() and not (folder == paths.base and path.suffix == ".safetensors")
    )


@contextmanager
def checkpoint_folder(paths: Paths, key: str, machine: int = 0) -> Iterator[Path]:
    """The folder for the checkpoints of `key`, for one training at a time; deleted on success.

    Of the machines of one training the first has it; the others wait for it before they train.

    Args:
        machine: the number of this machine.
    """
    folder = paths.state / "checkpoints" / key
    if machine > 0:
        yield folder
        return
    waiting = f"train: another process trains with the same inputs ({folder}); waiting."
    with exclusive(folder.with_suffix(".lock"), waiting):
        yield folder
        shutil.rmtree(folder)


def last_checkpoint(folder: Path, processes: int = 1) -> Path | None:
    """The newest complete checkpoint in `folder`; broken ones are deleted.

    The first of the `processes` writes the trainer's state last: a checkpoint without a readable
    one was cut short. The others may be later with the state of their random numbers.
    """
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        try:
            json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            is_complete = False
        else:
            others = (checkpoint / f"rng_state_{rank}.pth" for rank in range(1, processes))
            is_complete = all(map(_is_saved, others))
        if is_complete:
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def _is_saved(file: Path) -> bool:
    """Whether `torch.save` has written all of `file`.

    Interrupted by an exception, it closes an archive that lacks the pickled object.
    """
    try:
        names = zipfile.ZipFile(file).namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/data.pkl") for name in names)


def state_of(checkpoint: Path | None) -> TrainerState:
    """The trainer's state when it wrote `checkpoint`; None: at the start."""
    from transformers import TrainerState

    return TrainerState.load_from_json(str(checkpoint / STATE)) if checkpoint else TrainerState()


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))
