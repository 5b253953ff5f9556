"""Weights of quantisation-aware training in GGML's blocks, code for code.

Training rounds a group of weights to the lattice w = s·q with |q| < 2^(b−1). GGML's symmetric
types have the same form, w = d·q, but llama.cpp's quantiser chooses another d for each block, a
second rounding that no training step has seen. Here d is s: only its own rounding to fp16 remains.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loradag.checkpoints.model_files import NOTE
from loradag.quantization.absmax import choose_absmax_qparams

Array = np.ndarray[Any, Any]

BLOCK = 32
BITS = {"q4_0": 4, "q5_0": 5, "q8_0": 8}
# The distance to the nearest code at which a weight still counts as on the lattice. Of other
# weights it is anything up to a half.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Lattice:
    """`bits` a weight, and one scale for `group_size` weights of a row."""

    bits: int
    group_size: int

    def fits(self, type: str) -> bool:
        """Whether GGML's `type` can store the codes, and no block spans two groups."""
        return self.bits <= BITS.get(type, 0) and self.group_size % BLOCK == 0

    def encode(self, weight: Array, type: str) -> Array | None:
        """The rows of `weight` (out, in) as bytes of `type`; None: not on the lattice."""
        import torch

        if weight.shape[-1] % self.group_size:
            return None
        groups = weight.astype(np.float32).reshape(-1, self.group_size)
        scale = choose_absmax_qparams(torch.from_numpy(groups), (1, self.group_size), self.bits)[
            0
        ].numpy()
        exact = groups / scale
        codes = np.rint(exact)
        if np.abs(exact - codes).max() > TOLERANCE:
            return None
        d = np.repeat(scale.astype(np.float16), self.group_size // BLOCK, axis=0).view(np.uint8)
        packed = np.concatenate([d, _packed(codes.reshape(-1, BLOCK), type)], axis=1)
        return packed.reshape(*weight.shape[:-1], -1)


def read_lattice(model: Path) -> Lattice | None:
    """The lattice that the weights of the folder `model` were trained on; None: on none."""
    note = model / NOTE
    if not note.exists():
        return None
    scheme = json.loads(note.read_text(encoding="utf-8"))
    return Lattice(scheme["bits"], scheme["group_size"])


def _packed(codes: Array, type: str) -> Array:
    """Codes (blocks, 32) as the bytes that follow d in a block
    (https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h).
    """
    if type == "q8_0":
        return codes.astype(np.int8).view(np.uint8)
    raised = (codes + 2 ** (BITS[type] - 1)).astype(np.uint8)
    first, second = raised[:, : BLOCK // 2], raised[:, BLOCK // 2 :]
    nibbles: Array = (first & 15) | ((second & 15) << 4)
    if type == "q4_0":
        return nibbles
    return np.concatenate([np.packbits(raised >> 4, axis=1, bitorder="little"), nibbles], axis=1)
