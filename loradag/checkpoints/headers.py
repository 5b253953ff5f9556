"""What a model's files say of its shape, read from their headers: no weights are loaded."""

import json
import math
from collections.abc import Iterator
from pathlib import Path


def tensor_shapes(folder: Path) -> Iterator[tuple[str, str, list[int]]]:
    """(name, safetensors dtype, shape) of every tensor of a folder's safetensors files."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in sorted(header.items()):
            if name != "__metadata__":
                yield name, entry["dtype"], entry["shape"]


def count_parameters(folder: Path) -> int:
    """Parameters of an unquantized model; tied weights are stored, and counted, once."""
    return sum(math.prod(shape) for _, _, shape in tensor_shapes(folder))


def architecture(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config["architectures"][0])
