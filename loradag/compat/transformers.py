"""What transformers knows of a model and does not publish."""

import re
from collections.abc import Callable
from typing import Any

import torch


def float32_parameters(model: Any, dtype: torch.dtype) -> Callable[[str], bool]:
    """Whether transformers keeps the parameter of a name in float32 in a `model` of `dtype`.

    Why: some architectures name parameters that 16 bits ruin, such as the bias of a router.
    Versions: transformers 5.23; `_get_dtype_plan` returns {pattern of names: dtype}.
    Unnecessary once a loaded model can be asked for the dtype that each parameter should have.
    """
    plan = model._get_dtype_plan(dtype)
    patterns = [pattern.replace("*", ".*") for pattern, kept in plan.items() if kept != dtype]
    return lambda name: any(re.search(pattern, name) for pattern in patterns)
