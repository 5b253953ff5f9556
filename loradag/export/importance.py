"""How much each column of a matrix matters to what it computes, from the calibration rows.

Rounding W to Q changes y = W x by (W − Q) x, whose expected square is, for inputs that are not
correlated, the sum over columns j of (w_j − q_j)² · E[x_j²]. llama.cpp's quantisers take E[x_j²] as
the weight of a column's error: its importance matrix
(https://github.com/ggml-org/llama.cpp/blob/master/tools/imatrix/imatrix.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loradag.config.export import Export, is_mixed
from loradag.data.calibration_rows import read_calibration_rows
from loradag.models.placement import input_device
from loradag.runtime import Paths

Array = np.ndarray[Any, Any]

LONGEST = 512  # tokens of a row, llama.cpp's chunk


@dataclass(frozen=True)
class Importance:
    """E[x_j²] of each linear layer's inputs.

    Attributes:
        columns: by the layer's name, (in,) in float32.
        tokens: that the mean is over; 0: nothing was measured.
    """

    columns: dict[str, Array] = field(default_factory=dict)
    tokens: int = 0


NOT_MEASURED = Importance()


def measure_importance(model: Any, rows: list[list[int]]) -> Importance:
    """Run `rows` of token ids, each by itself, through the blocks of a transformers `model`."""
    import torch

    from loradag.export.gguf_format import matrices

    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    sums: dict[str, torch.Tensor] = {}

    def add(name: str) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...]) -> None:
            squares = inputs[0].detach().float().square().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, 0) + squares.cpu().double()

        return hook

    layers = {id(module) for module, _ in matrices(model) if module not in embeddings}
    hooks = [
        module.register_forward_pre_hook(add(name))
        for name, module in model.named_modules()
        if id(module) in layers
    ]
    with torch.inference_mode():
        for ids in rows:
            model.base_model(
                torch.tensor([ids[:LONGEST]], device=input_device(model)), use_cache=False
            )
    for hook in hooks:
        hook.remove()
    tokens = sum(len(ids[:LONGEST]) for ids in rows)
    means = {name: (total / tokens).float().numpy() for name, total in sums.items()}
    return Importance(means, tokens)


def importance_for(export: Export, paths: Paths) -> Importance:
    """Of the merged model, on the calibration rows; `NOT_MEASURED` where no type needs it.

    Raises:
        LoradagError: there are no calibration rows.
    """
    if not is_mixed(export):
        return NOT_MEASURED
    from loradag.evaluation.parity import comparison_dtype
    from loradag.models.loading import load_model

    rows = read_calibration_rows(
        paths.prepared / "calibration.parquet", export.calibration_rows, "export.type"
    )
    return measure_importance(load_model(paths.merged, comparison_dtype(paths.merged)), rows)
