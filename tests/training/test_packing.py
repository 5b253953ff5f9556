"""Packed rows do not see each other, and where they would, packing is refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from loradag.config.problems import LoradagError
from loradag.models.loading import load_model
from loradag.training.packing import verify_packing

FIRST, SECOND = list(range(100, 130)), list(range(200, 220))


@pytest.fixture
def collator():
    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_packed_exactly(tiny_base, collator, dtype) -> None:
    verify_packing(load_model(tiny_base, dtype), collator, FIRST, SECOND)


SMALL = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LEAKING = {
    # transformers refuses it by itself
    "qwen3_next": {
        "layer_types": ["full_attention", "linear_attention"], "num_hidden_layers": 2,
        "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 0,
    },
    # nobody else notices
    "jamba": {"num_hidden_layers": 4, "num_experts": 2, "mamba_d_state": 8, "mamba_expand": 2},
    "mamba": {"num_hidden_layers": 2, "state_size": 8},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAKING)
def test_layers_that_carry_their_state_across_rows_are_refused(collator, kind) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | LEAKING[kind]))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(LoradagError, match=r"train\.packing = True.* set train\.packing=false"):
        verify_packing(model, collator, FIRST, SECOND)
