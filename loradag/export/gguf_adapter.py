"""llama.cpp's file of a LoRA adapter, which it applies to the base's GGUF while it runs.

It has B and A of each adapted matrix under llama.cpp's names, and computes y = W x + B (A x)
(https://github.com/ggml-org/llama.cpp/blob/master/src/llama-adapter.cpp). The scale is multiplied
into B, so one form serves LoRA, rsLoRA and a PiSSA adapter saved as an update of its base.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loradag.compat.gguf import ConversionError, convert_adapter
from loradag.config.problems import LoradagError
from loradag.export.gguf_format import float_type, write_gguf
from loradag.merging.low_rank import CONFIG, PARTS, read_adapter
from loradag.models.pinning import weights_folder
from loradag.runtime.paths import Paths


def write_gguf_adapter(paths: Paths, path: Path, name: str) -> None:
    """Write the adapter as a LoRA file for the base's GGUF.

    Raises:
        LoradagError: the adapter is more than low-rank updates of linear layers.
    """
    updates = read_adapter(paths.adapter)
    others = sorted(updates.full) + [
        name for name, update in updates.low_rank.items() if set(update.parts) != set(PARTS[:2])
    ]
    if others:
        raise LoradagError(
            f"export.formats: {others[0]} of the adapter is no low-rank update of a linear layer, "
            "which alone llama.cpp's LoRA file has. Take export.formats=[adapter] or gguf."
        )
    factors = {
        name.removesuffix(".weight"): (
            update.parts[PARTS[0]].float(),
            update.parts[PARTS[1]].float() * update.scale,
        )
        for name, update in updates.low_rank.items()
    }
    config = json.loads((paths.adapter / CONFIG).read_text(encoding="utf-8"))
    try:
        with linked_base(paths.base) as base:
            convert_adapter(base, path, name, factors, bool(config.get("fan_in_fan_out")))
    except ConversionError as error:
        raise LoradagError(
            f"export.formats: llama.cpp's converter cannot convert the adapter. {error}. Take "
            "export.formats=[adapter]."
        ) from error


def write_gguf_base(base: Path, path: Path) -> None:
    """Write the base as a GGUF of the float type that stores its weights as they are."""
    with linked_base(base) as folder:
        write_gguf(folder, path, float_type(folder), "base")


@contextmanager
def linked_base(base: Path) -> Iterator[Path]:
    """A folder of links to the base's weights and to the tokenizer that `fetch` wrote for it."""
    with tempfile.TemporaryDirectory() as scratch:
        for folder in (base, weights_folder(base)):
            for file in sorted(folder.iterdir()):
                link = Path(scratch) / file.name
                if not link.exists():  # the base's tokenizer comes before that of its weights
                    link.symlink_to(file.resolve())
        yield Path(scratch)
