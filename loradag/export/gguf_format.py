"""GGUF, the format of llama.cpp, Ollama and LM Studio, and what its types make of weights.

GGML's types store blocks of 32 weights w of a row as codes q with one or two fp16 numbers
(https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h):

    q4_0, q5_0   w = d·(q − 2^(b−1))     symmetric           4.5, 5.5 bits a weight
    q4_1, q5_1   w = d·q + m             asymmetric          5.0, 6.0 bits a weight
    q8_0         w = d·q                 symmetric           8.5 bits a weight
    tq1_0, tq2_0 w = d·q, q in -1, 0, 1  blocks of 256       1.69, 2.06 bits a weight
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.checkpoints.safetensors_reader import FLOATS, read_entries
from loradag.compat.gguf import ConversionError, convert
from loradag.config.problems import LoradagError
from loradag.quantization.lattice import Lattice, read_lattice

if TYPE_CHECKING:
    import numpy as np
    import torch

FLOAT_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
EXACT_IN = {"f32": {"F32", "F16", "BF16"}, "f16": {"F16"}, "bf16": {"BF16"}}


def write_gguf(model: Path, path: Path, type: str, name: str) -> dict[str, str]:
    """Convert the folder `model` to the file `path`; return what fell back, tensor to its type.

    Matrices are stored as `type`, vectors in float32. A matrix whose rows are no multiple of the
    type's block falls back to f16; tables that the format wants exact are not counted. Of a model
    that was trained on a lattice which the type can store, the weights on it are stored as they
    are, and all other matrices as f16.

    Raises:
        LoradagError: the converter does not know the architecture or the tokenizer.
    """
    import gguf

    lattice = read_lattice(model)
    encode = None
    if lattice and lattice.fits(type):
        encode = partial(lattice.encode, type=type)
    try:
        convert(model, path, type, name, encode)
    except ConversionError as error:
        raise LoradagError(
            f"export.formats: llama.cpp's converter cannot convert this model. {error}. Take "
            "export=safetensors."
        ) from error
    return {
        tensor.name: tensor.tensor_type.name.lower()
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) > 1 and tensor.tensor_type.name.lower() not in (type, "f32")
    }


def is_exact(model: Path, type: str) -> bool:
    """Whether `type` stores every weight of the folder `model` as it is."""
    stored = {entry.dtype for entry in read_entries(model).values()} & set(FLOATS)
    return stored <= EXACT_IN.get(type, set())


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


def round_weights(model: Any, type: str, lattice: Lattice | None = None) -> None:
    """Round the matrices of a transformers model in place, as its GGUF of `type` stores them.

    What the model then loses is the format's own loss: what a runtime loses beyond it is an error.

    Raises:
        LoradagError: a weight is too large for `type`.
    """
    import torch

    names = {id(module): name for name, module in model.named_modules()}
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    done = set()
    for module, transposed in _matrices(model):
        weight = module.weight
        if weight.data_ptr() not in done:
            kind = "f16" if type.startswith("tq") and module in embeddings else type
            stored = rounded(weight.data.float().cpu(), kind, transposed, lattice)
            if not torch.isfinite(stored).all():
                raise LoradagError(
                    f"export.type = {type}: {names[id(module)]} has weights of up to "
                    f"{weight.abs().max():.3g}, too large for the type. Lower "
                    "train.learning_rate, or take export.type=bf16."
                )
            weight.data.copy_(stored)
            done.add(weight.data_ptr())


@contextmanager
def rounded_activations(model: Any, type: str) -> Iterator[None]:
    """Let every product of `model` round what it multiplies, as llama.cpp does for `type` on a CPU.

    There a product of float weights takes the other factor in their type; one of quantised weights
    takes it in q8_0: codes of 8 bits, a scale of fp16 for 32 numbers of a row
    (`vec_dot_type` in https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-cpu).
    f32 is rounded to fp16 here, as llama.cpp's tables of activation functions are.
    """

    def round_input(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_rounded_activation(inputs[0], type), *inputs[1:])

    embedding = model.get_input_embeddings()
    hooks = [
        module.register_forward_pre_hook(round_input)
        for module, _ in _matrices(model)
        if module is not embedding
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rounded_activation(values: torch.Tensor, type: str) -> torch.Tensor:
    import torch

    if type in FLOAT_TYPES:
        return values.to(torch.bfloat16 if type == "bf16" else torch.float16).to(values.dtype)
    if values.shape[-1] % 32:
        return values.half().to(values.dtype)
    blocks = values.float().unflatten(-1, (-1, 32))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    codes = (blocks / scale.where(scale > 0, 1)).round()
    restored: torch.Tensor = codes * scale.half().float()
    return restored.flatten(-2).to(values.dtype)


def _matrices(model: Any) -> Iterator[tuple[Any, bool]]:
    """The modules that multiply by a matrix or look one up, and whether they store (in, out)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in model.modules():
        is_matrix = isinstance(module, torch.nn.Linear | Conv1D) or module in embeddings
        if is_matrix and getattr(module, "weight", None) is not None:
            yield module, isinstance(module, Conv1D)
