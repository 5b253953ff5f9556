"""Read a folder's safetensors files one tensor at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tensor_files(folder: Path) -> dict[str, Path]:
    """Which file of `folder` holds which tensor, sorted by the tensors' names."""
    from safetensors import safe_open

    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            files |= dict.fromkeys(file.keys(), path)
    return dict(sorted(files.items()))


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """One tensor, on a mapping of the file of its own: pages read before do not stay held."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every (name, tensor) of `folder`."""
    for name, path in tensor_files(folder).items():
        yield name, read_tensor(path, name)


def read_metadata(folder: Path) -> dict[str, str]:
    """The metadata of all files of `folder`."""
    from safetensors import safe_open

    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= file.metadata() or {}
    return found
