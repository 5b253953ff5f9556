"""A corpus that a tiny model can learn, and a plain loop that teaches it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from loradag.models.loading import load_model
from loradag.models.pinning import sha256

STEPS = 120  # enough to learn the corpus in full precision, in two bits, and in three values


def hashes(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in sorted(folder.iterdir())}


def copied(trained: Any, root: Path) -> Any:
    """A fresh project in `root` with the inputs of `train` and nothing after them; its config."""
    paths, config, _ = trained
    mine = replace(paths, root=root)
    for name in ("base", "prepared", "quantized"):
        shutil.copytree(getattr(paths, name), getattr(mine, name))
    return mine, config


def corpus() -> torch.Tensor:
    """(rows, tokens): counting up by a step of the row's own, in a vocabulary of 64."""
    start, step = torch.meshgrid(torch.arange(16), torch.arange(1, 5), indexing="ij")
    rows = start.reshape(-1, 1) + step.reshape(-1, 1) * torch.arange(16)
    return 100 + rows % 64


def loss_of(model: Any) -> float:
    """Nats a token over the corpus."""
    ids = corpus()
    with torch.no_grad():
        return float(model.eval()(input_ids=ids, labels=ids).loss)


def teach(model: Any, steps: int, rate: float = 3e-3) -> Any:
    """`model` after `steps` full-batch AdamW steps on the corpus."""
    ids = corpus()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture
def fresh(tiny_base: Path) -> Callable[[], Any]:
    """Makes the tiny model in float32, the same each time."""
    return lambda: load_model(tiny_base, torch.float32)


@pytest.fixture(scope="session")
def taught(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the tiny model after ordinary training. Read it, never write to it."""
    folder = tmp_path_factory.mktemp("taught") / "model"
    teach(load_model(tiny_base, torch.float32), STEPS).save_pretrained(folder)
    return folder
