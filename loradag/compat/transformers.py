"""What transformers knows of a model and does not publish. All of it holds for 5.23."""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module


def float32_parameters(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps the parameter of a name in float32 in a `model` of `dtype`.

    Why: some architectures name parameters that 16 bits ruin, such as the bias of a router.
    `_get_dtype_plan` returns {pattern of names: dtype}.
    Unnecessary once a loaded model can be asked for the dtype that each parameter should have.
    """
    plan = model._get_dtype_plan(dtype)
    patterns = [pattern.replace("*", ".*") for pattern, kept in plan.items() if kept != dtype]
    return lambda name: any(re.search(pattern, name) for pattern in patterns)


def skipped_modules(model: Any, skip: list[str]) -> list[str]:
    """The modules that transformers leaves unquantised: `skip`, the output layer, what is tied.

    Why: what is quantised ahead must be what transformers builds quantised layers for.
    Unnecessary once transformers publishes how a quantizer chooses its layers.
    """
    skipped = HfQuantizer.get_modules_to_not_convert(
        model, list(skip), model._keep_in_fp32_modules, add_default_skips=True
    )
    return sorted(skipped)


def is_quantizable(module: str, skipped: list[str]) -> bool:
    """Whether transformers quantises the module of a name, given the names that it skips."""
    found: bool = should_convert_module(module, skipped)
    return found


@contextmanager
def reading_gguf_once() -> Iterator[None]:
    """Let transformers load tokenizer, config and weights of a GGUF file from one reading of it.

    Why: transformers parses the file for each of the three, and builds gguf's table of tensor
    names for each module of the model; gguf parses strings byte by byte on a memory map, whose
    every slice costs as much as the parsing. Two thirds of the time to load SmolLM2.
    Also for gguf 0.19. Unnecessary once transformers keeps the reader, and gguf reads from a plain
    array.
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
