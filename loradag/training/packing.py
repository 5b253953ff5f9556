"""Packing: several short rows in one, so that no padding is computed.

Exact where a model starts anew at each position 0. Attention does, by its mask; a linear-attention
or state-space layer carries its state across the boundary
(https://github.com/huggingface/transformers/issues/46093).
"""

from __future__ import annotations

from typing import Any

import torch

from loradag.config.problems import LoradagError

# Of the difference that seeing the other row makes. Attention makes none of it, also in bfloat16; a
# state-space layer in four makes all of it. Between them is the rounding of activations, whose
# scales or outliers depend on the other tokens of a batch: up to a fifth with int8.
TOLERANCE = 0.5


def verify_packing(model: Any, collator: Any, first: list[int], second: list[int]) -> None:
    """Compute `second` alone, packed behind `first`, and as the continuation of `first`.

    Args:
        collator: makes the model's inputs of packed rows, as in training.
        first: token ids of a row.
        second: token ids of another.

    Raises:
        LoradagError: packed, `second` sees `first`.
    """

    def logits(lengths: list[int], ids: list[int]) -> torch.Tensor:
        batch = collator([{"input_ids": ids, "labels": ids, "seq_lengths": lengths}])
        inputs = {
            name: value.to(model.device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
            if name != "labels"
        }
        output: torch.Tensor = model(**inputs, use_cache=False).logits[0, -len(second) :]
        return output.float()

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            alone = logits([len(second)], second)
            packed = logits([len(first), len(second)], first + second)
            continued = logits([len(first) + len(second)], first + second)
    except ValueError as error:  # transformers knows of some layers that it cannot separate
        raise LoradagError(f"train.packing = True: {error} Or set train.packing=false.") from error
    finally:
        model.train(was_training)
    leak = float((packed - alone).norm() / (continued - alone).norm())
    if leak > TOLERANCE:
        raise LoradagError(
            "train.packing = True: packed rows of this model see each other (a row's logits change "
            f"by {leak:.0%} of what its continuation would change), as with linear-attention "
            "or state-space layers. To train on it, set train.packing=false."
        )
