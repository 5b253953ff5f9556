"""The files of a model folder that are not its weights, and what its config says of them."""

import json
import shutil
from pathlib import Path

# All that a model is made of; never pickled weights.
PATTERNS = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
PIN = "pin.json"  # what `fetch` records of a base; it describes no other folder


def copy_all_but_weights(source: Path, folder: Path) -> None:
    """Copy configs, tokenizer and templates of a model, without its weights and their index."""
    for pattern in PATTERNS:
        for file in sorted(source.glob(pattern)):
            if ".safetensors" not in file.name and file.name != PIN:
                shutil.copyfile(file, folder / file.name)


def read_architecture(folder: Path) -> str:
    """The model's class by transformers' name."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config["architectures"][0])


def quantized_by(folder: Path) -> str | None:
    """transformers' name of the library that quantised the checkpoint; None: not quantised."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    method: str | None = (config.get("quantization_config") or {}).get("quant_method")
    return method
