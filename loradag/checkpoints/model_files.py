"""The files of a model folder that are not its weights, and what its config says of them."""

import json
import shutil
from pathlib import Path

PIN = "pin.json"  # what `fetch` records of a base; it describes no other folder
NOTE = "quantization.json"  # what a training records of the rounding that the model is to have
# What a model is made of besides its weights, by transformers' names; never pickled weights.
# Other files, such as notes beside a model of one's own, are none of it.
DESCRIPTION = (
    "config.json", "generation_config.json", "*processor_config.json", NOTE,
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.json", "tekken.json", "*.model", "vocab.json", "vocab.txt", "merges.txt",
    "emoji.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
LICENSES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # licences require that they are passed on


def copy_all_but_weights(source: Path, folder: Path) -> None:
    """Copy configs, tokenizer, chat template and licences of a model."""
    _copy(source, folder, DESCRIPTION + LICENSES)


def copy_licenses(source: Path, folder: Path) -> None:
    _copy(source, folder, LICENSES)


def _copy(source: Path, folder: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in sorted(source.glob(pattern)):
            if file.is_file():
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
