"""Peak memory of quantising a checkpoint: ours beside transformers' `from_pretrained`.

Builds a random Llama of 1.04 billion parameters on disk, in shards, then quantises it to NF4 both
ways, each in a fresh process, and prints the peaks side by side. Needs 4 GB of disk; deletes it.

    python -m benchmarks.quantize_memory

`anonymous` is memory of the process's own. `resident` adds the pages of mapped files, which the
system may drop at any time; they count in a container's limit all the same.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}
SHARD = 500 * 10**6  # bytes


def build(folder: Path) -> int:
    """Write the model shard by shard, in bfloat16; its bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", **SHAPE, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    index, total, count = {}, 0, 1
    for name, parameter in model.named_parameters():
        if sum(tensor.nbytes for tensor in shards[-1].values()) > SHARD:
            save_file(shards[-1], folder / f"model-{count:05}.safetensors", {"format": "pt"})
            shards, count = [{}], count + 1
        value = torch.empty(parameter.shape).normal_(0, 0.02, generator=generator).bfloat16()
        shards[-1][name] = value
        index[name] = f"model-{count:05}.safetensors"
        total += value.nbytes
    save_file(shards[-1], folder / f"model-{count:05}.safetensors", {"format": "pt"})
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)
    return total


def ours(base: Path, folder: Path) -> None:
    from loradag.config.composition import compose, plain
    from loradag.config.validation import validate
    from loradag.quantization.conversion import quantize_checkpoint

    quantize_checkpoint(base, folder, validate(plain(compose(["quantize=nf4"]))).quantize)


def transformers(base: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    )
    AutoModelForCausalLM.from_pretrained(
        base, quantization_config=config, dtype=torch.bfloat16, device_map={"": "cpu"}
    ).save_pretrained(folder)


WAYS: dict[str, Callable[[Path, Path], None]] = {"ours": ours, "transformers": transformers}


def held(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(way: str, base: Path, folder: Path) -> dict[str, float]:
    """Run one way in this process, watched; peaks in bytes beyond what the imports hold."""
    import bitsandbytes  # noqa: F401
    import torchao.quantization  # noqa: F401
    import transformers  # noqa: F401

    fields = {"anonymous": "RssAnon", "resident": "VmRSS"}
    before = {name: held(field) for name, field in fields.items()}
    peaks, done = dict(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for name, field in fields.items():
                peaks[name] = max(peaks[name], held(field))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    WAYS[way](base, folder)
    seconds = time.perf_counter() - started
    done.set()
    watcher.join()
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {
        "seconds": seconds,
        "written": written,
        **{name: peaks[name] - before[name] for name in fields},
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        base = root / "base"
        base.mkdir()
        total = build(base)
        largest = max(file.stat().st_size for file in base.glob("*.safetensors"))
        print(f"base: {total / 2e9:.2f}e9 parameters, {total / 1e9:.2f} GB, ", end="")
        print(f"{len(list(base.glob('*.safetensors')))} shards of at most {largest / 1e9:.2f} GB")
        results: dict[str, dict[str, Any]] = {}
        for way in WAYS:
            (root / way).mkdir()
            command = [sys.executable, "-m", __spec__.name, way, str(base), str(root / way)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            results[way] = json.loads(output.splitlines()[-1])
        print(f"{'':14}{'ours':>14}{'transformers':>14}{'ratio':>8}")
        for key in ("written", "anonymous", "resident", "seconds"):
            unit = 1 if key == "seconds" else 1e9
            one, other = (results[way][key] / unit for way in WAYS)
            label = key if key == "seconds" else f"{key} GB"
            print(f"{label:14}{one:14.2f}{other:14.2f}{one / other:8.2f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
