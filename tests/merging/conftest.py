"""Tiny random models of several architectures, and adapters with values that matter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHAPE = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
EXPERTS = {
    "mixtral": SHAPE | {"num_local_experts": 4},
    # The first layer has no experts.
    "qwen3_moe": SHAPE | {"head_dim": 8, "num_experts": 4, "moe_intermediate_size": 16,
                          "mlp_only_layers": [0]},
    # (experts, in, out), stored as one tensor
    "gpt_oss": SHAPE | {"head_dim": 8, "num_local_experts": 4, "intermediate_size": 16},
}  # fmt: skip
ARCHITECTURES = {
    "llama": SHAPE, "mistral": SHAPE, "qwen2": SHAPE, "gemma": SHAPE | {"head_dim": 8},
    "gpt2": GPT2,
}  # fmt: skip


@pytest.fixture
def save_base(tmp_path: Path) -> Callable[..., Path]:
    def save(
        architecture: str = "llama", tied: bool = True, dtype: str = "float32", shard: str = "5GB"
    ) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            architecture, **(ARCHITECTURES | EXPERTS)[architecture], tie_word_embeddings=tied
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        model.save_pretrained(tmp_path / "base", max_shard_size=shard)
        return tmp_path / "base"

    return save


@pytest.fixture
def save_adapter() -> Callable[..., Any]:
    """Put a peft adapter with random values on a base, save it, and return the peft model."""

    def save(base: Path, folder: Path, **options: Any) -> Any:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        defaults = {
            "r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM",
        }  # fmt: skip
        torch.manual_seed(1)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(base), LoraConfig(**(defaults | options))
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
        model.save_pretrained(folder)
        return model.eval()

    return save
