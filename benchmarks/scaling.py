"""The table of `docs/scaling.md`: peak memory of training by the plan's formula.

    python -m benchmarks.scaling

Nothing is trained: it prints estimates, for models of 0.1, 1, 8 and 70 billion parameters, ways to
train them, and numbers of devices.
"""

from typing import Any

from loradag.config.composition import compose, plain
from loradag.planning.memory import TrainMemory, train_memory
from loradag.planning.parameters import llama_shape

SIZES: dict[str, dict[str, Any]] = {
    "0.1 B": {  # SmolLM2-135M
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
    "1 B": {  # Llama-3.2-1B
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "8 B": {  # Llama-3.1-8B
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    },
    "70 B": {  # Llama-3.1-70B
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672,
        "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    },
}  # fmt: skip
WAYS = {
    "QLoRA (nf4)": ["quantize=nf4"],
    "LoRA": ["quantize=none"],
    "every weight": ["quantize=none", "adapter=none"],
}
COMMON = [
    "runtime.device=cuda", "train.dtype=bfloat16", "train.batch_size=1",
    "train.gradient_checkpointing=true", "prepare.max_tokens=1024",
]  # fmt: skip
DEVICES = (1, 8, 32)


def memory(size: str, way: str) -> TrainMemory:
    rank = [] if "adapter=none" in WAYS[way] else ["adapter.r=16"]
    params = plain(compose([*COMMON, *rank, *WAYS[way]]))
    return train_memory(llama_shape({"model_type": "llama"} | SIZES[size]), params, None)


def table() -> str:
    rows = ["| model | training | 1 device | each of 8 | each of 32 |", "|---|---|---:|---:|---:|"]
    for size in SIZES:
        for way in WAYS:
            parts = memory(size, way)
            cells = [f"{parts.on_each_of(devices) / 1e9:.1f} GB" for devices in DEVICES]
            rows.append(f"| {size} | {way} | {' | '.join(cells)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
