"""What dtype matrix products are computed in."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PRODUCTS = (aten.mm.default, aten.mm.out, aten.addmm.default, aten.addmm_.default, aten.bmm.default)


class ProductsByDtype(TorchDispatchMode):
    """While it is entered, counts the multiplications of matrix products by dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in PRODUCTS:
            first, second = args[-2:]
            self.found[first.dtype] += first.numel() * second.shape[-1]
        return function(*args, **(kwargs or {}))
