"""Peak memory of merging: ours, a tensor at a time, next to peft's `merge_and_unload`.

    python -m benchmarks.merge_memory

Builds a random Llama of 1.1 billion parameters in 16 bits and several shards, and a LoRA adapter
on all of its linear layers, in a temporary folder (7 GB); merges it in a fresh process each way;
prints peak resident memory, the ratio, and whether the merged weights agree.
"""

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

from loradag.runtime import peak_rss_bytes

CONFIG = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False,
    "max_position_embeddings": 2048,
}  # fmt: skip
SHARD = "500MB"
RANK = 16


def build(folder: Path) -> tuple[int, int]:
    """Write base and adapter; return parameters and the bytes of the largest shard."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from loradag.checkpoints.safetensors_reader import Entry
    from loradag.checkpoints.safetensors_writer import ShardWriter, split_into_shards

    config = AutoConfig.for_model("llama", **CONFIG, dtype="bfloat16")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    base, adapter = folder / "base", folder / "adapter"
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(base)
    meta = {name: Entry("", "BF16", tuple(p.shape)) for name, p in model.named_parameters()}
    layout = split_into_shards(meta, SHARD)
    torch.manual_seed(0)
    with ShardWriter(base, layout) as writer:
        for name, entry in layout.items():
            writer.write(name, torch.randn(entry.shape, dtype=torch.bfloat16) * 0.02)
    parts = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            key = f"base_model.model.{name}"
            parts[f"{key}.lora_A.weight"] = torch.randn(RANK, module.in_features) * 0.02
            parts[f"{key}.lora_B.weight"] = torch.randn(module.out_features, RANK) * 0.02
    from peft import LoraConfig

    LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear").save_pretrained(adapter)
    save_file(parts, adapter / "adapter_model.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    return parameters, max(file.stat().st_size for file in base.glob("*.safetensors"))


def ours(folder: Path) -> None:
    from loradag.merging.streaming import merge_streaming

    (folder / "ours").mkdir()
    merge_streaming(folder / "base", folder / "adapter", folder / "ours", dtype="auto")


def peft(folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(base, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "peft", max_shard_size=SHARD)


def measure(way: str, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    {"ours": ours, "peft": peft}[way](folder)
    return {"peak_rss_bytes": peak_rss_bytes(), "seconds": round(time.perf_counter() - started, 1)}


def largest_difference(folder: Path) -> float:
    """The largest |ours - peft's|, as a fraction of the weight's own 16-bit step."""
    from loradag.checkpoints.safetensors_reader import read_entries, read_tensor

    theirs = read_entries(folder / "peft")
    largest = 0.0
    for name, entry in read_entries(folder / "ours").items():
        one = read_tensor(folder / "ours" / entry.file, name).float()
        other = read_tensor(folder / "peft" / theirs[name].file, name).float()
        # bfloat16 has 8 bits of significand: neighbours lie at most 2^-7 of the value apart.
        step = other.abs().clamp(min=1e-30) * 2.0**-7
        largest = max(largest, float(((one - other).abs() / step).max()))
    return largest


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with context.Pool(1) as pool:
            parameters, shard = pool.apply(build, (folder,))
        results = {}
        for way in ("ours", "peft"):
            with context.Pool(1) as pool:
                results[way] = pool.apply(measure, (way, folder))
        with context.Pool(1) as pool:
            difference = pool.apply(largest_difference, (folder,))
    peak = {way: found["peak_rss_bytes"] for way, found in results.items()}
    print(
        json.dumps(
            {
                "parameters": parameters,
                "largest_shard_bytes": shard,
                **results,
                "ours_over_peft": round(peak["ours"] / peak["peft"], 3),
                "ours_over_largest_shard_bytes": peak["ours"] - shard,
                "largest_difference_in_steps": round(difference, 3),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
