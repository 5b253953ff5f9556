"""The check of every layer by itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from loradag.merging.layers import largest_error, layer_outputs
from loradag.training.experts import expert_matrices
from tests.merging.conftest import EXPERTS


@pytest.mark.parametrize("architecture", EXPERTS)
def test_one_expert_without_its_update_is_found(
    save_base: Callable[..., Path],
    save_adapter: Callable[..., Any],
    tmp_path: Path,
    architecture: str,
) -> None:
    from transformers import AutoModelForCausalLM

    base = save_base(architecture, tied=False)
    before = AutoModelForCausalLM.from_pretrained(base)
    matrices = expert_matrices(before)
    model = save_adapter(
        base, tmp_path, target_modules=["q_proj"], target_parameters=matrices, lora_alpha=1
    )
    outputs = layer_outputs(model)
    assert set(matrices) < set(outputs)
    merged = model.merge_and_unload()
    assert largest_error(merged, outputs)[1] < 1e-6
    for name in matrices[:2]:
        parameter = merged.get_parameter(name)
        whole = parameter.detach().clone()
        parameter.data[-1] = before.get_parameter(name)[-1]
        found, error = largest_error(merged, outputs)
        assert found == name
        assert error > 1e-3
        parameter.data.copy_(whole)
