"""How transformers loads a model, its tokenizer and its config from a GGUF file."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


@contextmanager
def reading_gguf_once() -> Iterator[None]:
    """Let transformers load tokenizer, config and weights of a GGUF file from one reading of it.

    Why: transformers parses the file for each of the three, and builds gguf's table of tensor
    names for each module of the model; gguf parses strings byte by byte on a memory map, whose
    every slice costs as much as the parsing. Two thirds of the time to load SmolLM2.
    For transformers 5.23 and gguf 0.19. Unnecessary once transformers keeps the reader, and gguf
    reads from a plain array.
    """
    import gguf

    class PlainReader(gguf.GGUFReader):
        data: Any

        def _build_fields(self, offset: int, count: int) -> int:
            self.data = self.data.view(np.ndarray)  # the same memory
            return int(super()._build_fields(offset, count))

    reader, names = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = functools.cache(PlainReader)
    gguf.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = reader, names
