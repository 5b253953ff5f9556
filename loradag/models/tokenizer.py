"""Load the tokenizer of a model folder."""

from pathlib import Path
from typing import Any


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
