"""Tiny random models of the architectures that users bring, in the layout of a model hub.

Each has the kind of tokenizer that the real ones have: SentencePiece, or a byte-level BPE with the
family's own splitting rule.
"""

import json
from pathlib import Path
from typing import Any

from tests.sentencepiece_model import train_pieces

VOCABULARY = 1000
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 64}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}
UNTIED, TIED = {"tie_word_embeddings": False}, {"tie_word_embeddings": True}
# Family: model_type, tokenizer, config beyond SHAPE.
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama 2": ("llama", "sentencepiece", UNTIED),
    "Llama 3": ("llama", "llama3", UNTIED),
    "Mistral": ("mistral", "sentencepiece", UNTIED),
    "Qwen 2": ("qwen2", "qwen2", TIED),
    "Qwen 2.5": ("qwen2", "qwen2", UNTIED),
    "Qwen 3": ("qwen3", "qwen2", TIED | {"head_dim": 16}),
    "Gemma": ("gemma", "gemma", {"head_dim": 16}),
    "Gemma 2": ("gemma2", "gemma", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "Gemma 3": ("gemma3_text", "gemma", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "Phi 3": ("phi3", "sentencepiece", UNTIED),
    "Phi 4": ("phi3", "gpt2", UNTIED),
    "OLMo 2": ("olmo2", "gpt2", UNTIED),
    "Granite": ("granite", "digits", TIED | {"embedding_multiplier": 12.0,
                "attention_multiplier": 0.1, "residual_multiplier": 0.22, "logits_scaling": 8.0}),
    "SmolLM3": ("smollm3", "llama3_without_bos", TIED),
    "GPT-2": ("gpt2", "gpt2", {}),
    "GPT-NeoX": ("gpt_neox", "gpt2", UNTIED),
    "StableLM": ("stablelm", "gpt2", UNTIED),
    "Mixtral": ("mixtral", "sentencepiece", UNTIED | {"num_local_experts": 4, **EXPERTS}),
    "Qwen3-MoE": ("qwen3_moe", "qwen2", UNTIED | {"num_experts": 4, "head_dim": 16,
                  "norm_topk_prob": True, **EXPERTS}),
}  # fmt: skip
SENTENCEPIECE = {
    "sentencepiece": ({"unk": "<unk>", "bos": "<s>", "eos": "</s>"}, True, "LlamaTokenizer"),
    "gemma": (
        {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"}, False, "GemmaTokenizer",
    ),
}  # fmt: skip


def save_family(family: str, folder: Path, **changes: Any) -> None:
    """A random model of `family` whose weights matter, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, tokenizer, config = FAMILIES[family]
    folder.mkdir(parents=True)
    ids = _save_tokenizer(tokenizer, folder)
    shape = GPT2 if model_type == "gpt2" else SHAPE
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **(shape | config | ids | changes)), dtype=torch.float32
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 4  # of its initial 0.02, which makes every next token as likely
    model.save_pretrained(folder)


def _save_tokenizer(kind: str, folder: Path) -> dict[str, int]:
    """Write the files of the tokenizer; return its special ids."""
    from transformers import AutoTokenizer

    if kind in SENTENCEPIECE:
        special, prefix, name = SENTENCEPIECE[kind]
        (folder / "tokenizer.model").write_bytes(train_pieces(special, prefix))
        tokens = {f"{part}_token": token for part, token in special.items()}
        described = {"tokenizer_class": name, "add_bos_token": True, **tokens}
        (folder / "tokenizer_config.json").write_text(json.dumps(described))
        model_type = "gemma" if kind == "gemma" else "llama"
        (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    else:
        tokenizer = _byte_level(kind)
    tokenizer.save_pretrained(folder)
    found = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    return {**found, "pad_token_id": tokenizer.pad_token_id}


def _byte_level(kind: str) -> Any:
    from tokenizers import Regex, pre_tokenizers, processors

    from loradag.compat.gguf import LLAMA3
    from loradag.models.random_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(VOCABULARY, "<|endoftext|>")
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = {
        "gpt2": plain,
        "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "llama3": _split(Regex(LLAMA3)),
        "llama3_without_bos": _split(Regex(LLAMA3)),
        "qwen2": _split(Regex(LLAMA3.replace("{1,3}", ""))),
    }
    tokenizer.backend_tokenizer.pre_tokenizer = split[kind]
    if kind == "llama3":
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos[0]} $A", special_tokens=[bos]
        )
    return tokenizer


def _split(pattern: Any) -> Any:
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
