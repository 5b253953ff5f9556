"""GGUF, the format of llama.cpp, Ollama and LM Studio, and what its types make of weights.

GGML's types store blocks of 32 weights w of a row as codes q with one or two fp16 numbers
(https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h):

    q4_0, q5_0   w = d·(q − 2^(b−1))     symmetric           4.5, 5.5 bits a weight
    q4_1, q5_1   w = d·q + m             asymmetric          5.0, 6.0 bits a weight
    q8_0         w = d·q                 symmetric           8.5 bits a weight
    tq1_0, tq2_0 w = d·q, q in -1, 0, 1  blocks of 256       1.69, 2.06 bits a weight

File types such as q4_k_m mix types (`mixtures.py`), and their rounding minimises the error of each
row weighted by the importance of its columns (`importance.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.safetensors_reader import FLOATS, read_entries
from loradag.compat.gguf import ConversionError, convert, list_matrices
from loradag.compat.llamacpp import quantize_rows
from loradag.config.problems import LoradagError
from loradag.export.importance import Importance
from loradag.export.mixtures import FALLBACKS, SUPER_BLOCK, Mixture, read_mixture
from loradag.models.activations import changed_inputs
from loradag.models.placement import change_weight
from loradag.quantization.lattice import Lattice, read_lattice
from loradag.runtime.environment import threads

if TYPE_CHECKING:
    import numpy as np
    import torch

FLOAT_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
EXACT_IN = {"f32": {"F32", "F16", "BF16"}, "f16": {"F16"}, "bf16": {"BF16"}}


# GGML's type of a layer with rows of so many columns, and the importance of its columns.
Stored = Callable[[str, int], tuple[str, "np.ndarray[Any, Any] | None"]]


def write_gguf(
    model: Path, path: Path, type: str, name: str, importance: Importance | None = None
) -> dict[str, str]:
    """Convert the folder `model` to the file `path`; return what fell back, tensor to its type.

    Matrices are stored as `type`, vectors in float32. A matrix whose rows are no multiple of the
    type's block falls back to f16, in a mixture to a type with blocks of 32; tables that the format
    wants exact are not counted. Of a model that was trained on a lattice which the type can store,
    the weights on it are stored as they are, and all other matrices as f16.

    Args:
        importance: of the columns of the model's layers; a mixture needs it.

    Raises:
        LoradagError: the converter does not know the architecture or the tokenizer.
    """
    import gguf

    lattice = read_lattice(model)
    mixture = read_mixture(model, type)
    encode = choose = None
    if mixture:
        choose = partial(_choose, mixture, importance or Importance())
    elif lattice and lattice.fits(type):
        encode = partial(lattice.encode, type=type)
    try:
        convert(model, path, type, name, encode, choose)
    except ConversionError as error:
        raise LoradagError(
            f"export.formats: llama.cpp's converter cannot convert this model. {error}. Take "
            "export=safetensors."
        ) from error
    stored = {
        tensor.name: tensor.tensor_type.name.lower()
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) > 1 and tensor.tensor_type.name != "F32"
    }
    meant = {name: mixture.choose(name, SUPER_BLOCK) if mixture else type for name in stored}
    return {name: kind for name, kind in stored.items() if kind != meant[name]}


def count_types(path: Path) -> dict[str, int]:
    """How many matrices of a GGUF file each of GGML's types stores."""
    import gguf

    kinds = [t.tensor_type.name.lower() for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def _choose(
    mixture: Mixture, importance: Importance, layer: str, name: str, columns: int
) -> tuple[str, Callable[[Any], Any] | None]:
    """The type of a matrix, and llama.cpp's quantiser for it; None: a float type."""
    type = mixture.choose(name, columns)
    if type in FLOAT_TYPES:
        return type, None
    columns_of = _column_importance(importance, layer, name)
    return type, lambda rows: quantize_rows(rows, _number(type), columns_of, threads())


def _column_importance(importance: Importance, layer: str, name: str) -> Any:
    """llama.cpp has none for the embedding and the output matrix, which are no part of a block."""
    if not name.startswith("blk."):
        return None
    if layer not in importance.columns:
        raise LoradagError(
            f"export.type: no layer {layer} read the calibration rows, so {name} cannot be "
            "rounded by importance. Take export.type=q8_0."
        )
    return importance.columns[layer]


def _number(type: str) -> int:
    import gguf

    return int(gguf.GGMLQuantizationType[type.upper()])


def read_storage(model: Path, type: str, importance: Importance) -> Stored | None:
    """How a GGUF of the file type `type` stores each layer of the folder `model`; None: alike."""
    mixture = read_mixture(model, type)
    if mixture is None:
        return None
    names = list_matrices(model)

    def stored(layer: str, columns: int) -> tuple[str, Any]:
        # The one layer that transformers may call otherwise than the checkpoint (GPT-NeoX).
        name = names.get(layer, "output.weight")
        return mixture.choose(name, columns), _column_importance(importance, layer, name)

    return stored


def is_exact(model: Path, type: str) -> bool:
    """Whether `type` stores every weight of the folder `model` as it is."""
    stored = {entry.dtype for entry in read_entries(model).values()} & set(FLOATS)
    return stored <= EXACT_IN.get(type, set())


def float_type(model: Path) -> str:
    """The smallest float type that stores every weight of the folder `model` as it is."""
    return next(type for type in ("f16", "bf16", "f32") if is_exact(model, type))


def rounded(
    weight: torch.Tensor, type: str, transposed: bool, lattice: Lattice | None = None
) -> torch.Tensor:
    """What a float32 matrix (out, in) is after a round trip through `type`, as the file has it.

    Args:
        transposed: the matrix is (in, out).
        lattice: the lattice of a model that was trained on one.
    """
    import gguf
    import torch

    if type in FLOAT_TYPES:
        return weight.to(getattr(torch, FLOAT_TYPES[type])).float()
    rows: np.ndarray[Any, Any] = (weight.T if transposed else weight).contiguous().numpy()
    kind = gguf.GGMLQuantizationType[type.upper()]
    if lattice and lattice.fits(type):
        blocks = lattice.encode(rows, type)
    elif rows.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        blocks = None
    else:
        blocks = gguf.quants.quantize(rows, kind)
    if blocks is None:
        return weight.half().float()
    stored = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    return stored.T if transposed else stored


def _rounded_by_importance(
    weight: torch.Tensor, type: str, transposed: bool, importance: Any
) -> torch.Tensor:
    """What `rounded` is for a matrix of a mixture: through llama.cpp's own quantiser."""
    import gguf
    import torch

    if type in FLOAT_TYPES:
        return rounded(weight, type, transposed)
    rows = (weight.T if transposed else weight).contiguous().numpy()
    blocks = quantize_rows(rows, _number(type), importance, threads())
    kind = gguf.GGMLQuantizationType[type.upper()]
    stored = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    return stored.T if transposed else stored


def round_weights(
    model: Any, type: str, lattice: Lattice | None = None, stored: Stored | None = None
) -> None:
    """Round the matrices of a transformers model in place, as its GGUF of `type` stores them.

    What the model then loses is the format's own loss: what a runtime loses beyond it is an error.

    Args:
        lattice: of a model that was trained on one.
        stored: of a mixture, how each layer is stored.

    Raises:
        LoradagError: a weight is too large for `type`.
    """
    import torch

    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())

    def change(name: str, is_end: bool, transposed: bool, weight: torch.Tensor) -> torch.Tensor:
        exact = weight.float().cpu()
        if stored:
            kind, importance = stored(name, _columns(weight, transposed))
            restored = _rounded_by_importance(exact, kind, transposed, importance)
        else:
            kind = "f16" if type.startswith("tq") and is_end else type
            restored = rounded(exact, kind, transposed, lattice)
        if not torch.isfinite(restored).all():
            raise LoradagError(
                f"export.type = {type}: {name} has weights of up to {weight.abs().max():.3g}, too "
                "large for the type. Lower train.learning_rate, or take export.type=bf16."
            )
        return restored

    names = _stored_names(model)
    for module, transposed in matrices(model):
        is_shared = module.weight is embeddings[0].weight and module is not embeddings[0]
        if not is_shared or module.weight.is_meta:
            is_end = module in embeddings
            change_weight(module, partial(change, names[id(module)], is_end, transposed))


def _stored_names(model: Any) -> dict[int, str]:
    """By the id of each module, the name of the layer whose weight it has in a checkpoint."""
    names = {id(module): name for name, module in model.named_modules()}
    if model.config.tie_word_embeddings:
        names[id(model.get_output_embeddings())] = names[id(model.get_input_embeddings())]
    return names


def _columns(weight: Any, transposed: bool) -> int:
    return int(weight.shape[0 if transposed else 1])


def rounded_activations(
    model: Any, type: str, stored: Stored | None = None
) -> AbstractContextManager[None]:
    """A context in which products round what they multiply, as llama.cpp does for `type` on a CPU.

    There a product of float weights takes the other factor in their type; one of quantised weights
    takes it in q8_0: codes of 8 bits, a scale of fp16 for 32 numbers of a row; one of weights in
    blocks of 256 in q8_K, a scale of float32 for 256 numbers
    (`vec_dot_type` in https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cpu).
    f32 is rounded to fp16 here, as llama.cpp's tables of activation functions are.

    Args:
        stored: of a mixture, how each layer is stored.
    """

    names = _stored_names(model)
    changes = {}
    for module, transposed in matrices(model):
        if module is not model.get_input_embeddings():
            kind = type
            if stored:
                kind = stored(names[id(module)], _columns(module.weight, transposed))[0]
            changes[module] = partial(_rounded_activation, type=kind)
    return changed_inputs(changes)


def _rounded_activation(values: torch.Tensor, type: str) -> torch.Tensor:
    import torch

    if type in FLOAT_TYPES:
        return values.to(torch.bfloat16 if type == "bf16" else torch.float16).to(values.dtype)
    if values.shape[-1] % 32:
        return values.half().to(values.dtype)
    size = SUPER_BLOCK if type in FALLBACKS else 32
    blocks = values.float().unflatten(-1, (-1, size))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / scale.where(scale > 0, 1)).round()
    restored: torch.Tensor = codes * (scale if size == SUPER_BLOCK else scale.half().float())
    return restored.flatten(-2).to(values.dtype)


def matrices(model: Any) -> Iterator[tuple[Any, bool]]:
    """The modules that multiply by a matrix or look one up, and whether they store (in, out)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        is_matrix = isinstance(module, torch.nn.Linear | Conv1D) or module in embeddings
        if is_matrix and getattr(module, "weight", None) is not None:
            yield module, isinstance(module, Conv1D)
