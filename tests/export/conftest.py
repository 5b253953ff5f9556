"""A merged model whose weights matter: perplexity moves when any of them does."""

import shutil
from pathlib import Path

import pytest
import torch

from loradag.config.sections import Config
from loradag.models.loading import load_model
from loradag.runtime import Paths
from tests.conftest import run_stages, smoke_config


@pytest.fixture(scope="session")
def export_config() -> Config:
    return smoke_config("quantize=none")


@pytest.fixture(scope="session")
def exportable(
    tmp_path_factory: pytest.TempPathFactory, tiny_base: Path, export_config: Config
) -> Paths:
    """A project up to `merge`. Tests write to its `artifacts/export` alone."""
    from peft import LoraConfig, get_peft_model

    paths = Paths(tmp_path_factory.mktemp("exportable"))
    shutil.copytree(tiny_base, paths.base)
    model = load_model(paths.base, torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data *= 6  # of its initial 0.02, which makes every next token as likely
    model.save_pretrained(paths.base)
    run_stages(paths, export_config, "prepare", "quantize")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            parameter.data += 0.01 * torch.randn_like(parameter)
    tuned.save_pretrained(paths.adapter)
    run_stages(paths, export_config, "merge")
    return paths
