"""Random models whose tokenizer is a SentencePiece model, as Llama 2's and Gemma's are."""

import importlib.resources
import io
import json
from pathlib import Path
from typing import Any

VOCABULARY = 1000
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
}  # fmt: skip
# Special tokens in the order of their ids, and whether a space is put before a text.
KINDS: dict[str, dict[str, Any]] = {
    "llama": {
        "special": {"unk": "<unk>", "bos": "<s>", "eos": "</s>"},
        "prefix": True,
        "class": "LlamaTokenizer",
        "config": {"tie_word_embeddings": False},
    },
    "gemma": {
        "special": {"pad": "<pad>", "eos": "<eos>", "bos": "<bos>", "unk": "<unk>"},
        "prefix": False,
        "class": "GemmaTokenizer",
        "config": {"tie_word_embeddings": True, "head_dim": 16},
    },
}


def save_model(kind: str, folder: Path) -> None:
    """A random model of `kind` in the hub's layout: tokenizer.model and tokenizer.json, weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    parts = KINDS[kind]
    ids = {f"{name}_token_id": id for id, name in enumerate(parts["special"]) if name != "unk"}
    folder.mkdir()
    config = AutoConfig.for_model(kind, **SHAPE, **parts["config"], **ids)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(train_pieces(parts["special"], parts["prefix"]))
    tokens = {f"{name}_token": token for name, token in parts["special"].items()}
    described = {"tokenizer_class": parts["class"], "add_bos_token": True, **tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def train_pieces(special: dict[str, str], prefix: bool) -> bytes:
    """A SentencePiece BPE with byte fallback, trained on embedded text."""
    import sentencepiece

    text = (importlib.resources.files("fortune") / "datfiles" / "wisdom").read_text("utf-8")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=written,
        model_type="bpe",
        vocab_size=VOCABULARY,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        num_threads=1,
        minloglevel=2,
        **{f"{name}_id": -1 for name in ("pad",) if name not in special},
        **{f"{name}_id": id for id, name in enumerate(special)},
        **{f"{name}_piece": token for name, token in special.items()},
    )
    return written.getvalue()
