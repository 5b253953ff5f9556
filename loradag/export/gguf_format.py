"""GGUF, the format of llama.cpp, Ollama and LM Studio, through llama.cpp's own converter.

GGML's types store blocks of 32 weights w of a row as codes q with one or two fp16 numbers
(https://github.com/ggml-org/llama.cpp/blob/master/ggml/src/ggml-common.h):

    q4_0, q5_0   w = d·(q − 2^(b−1))     symmetric           4.5, 5.5 bits a weight
    q4_1, q5_1   w = d·q + m             asymmetric          5.0, 6.0 bits a weight
    q8_0         w = d·q                 symmetric           8.5 bits a weight
    tq1_0, tq2_0 w = d·q, q in -1, 0, 1  blocks of 256       1.69, 2.06 bits a weight
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.config.problems import LoradagError
from loradag.quantization.lattice import Lattice, read_lattice

if TYPE_CHECKING:
    import numpy as np
    import torch

# What the converter has no output type for; the gguf package quantises blocks to them.
BEYOND_CONVERTER = ("q5_1", "q5_0", "q4_1", "q4_0")
# llama.cpp's pre-tokenizers, by what a byte-level tokenizer splits a text with before its merges.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (LLAMA3, "ByteLevel"): "llama-bpe",
    (LLAMA3.replace("{1,3}", ""), "ByteLevel"): "qwen2",
}


def write_gguf(model: Path, path: Path, type: str, name: str) -> dict[str, str]:
    """Convert the folder `model` to the file `path`; return what fell back, tensor to its type.

    Matrices are stored as `type`, vectors in float32. A matrix whose rows are no multiple of the
    type's block falls back to f16; tables that the format wants exact are not counted. Of a model
    that was trained on a lattice which the type can store, the weights on the lattice are stored as
    they are, and all other matrices as f16.

    Raises:
        LoradagError: the converter does not know the architecture or the tokenizer.
    """
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    kind = "ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"
    hparams = ModelBase.load_hparams(model, False)
    architecture = get_model_architecture(hparams, ModelType.TEXT)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        # The converter reads size, version and base out of the folder's name.
        named = Path(scratch) / name
        named.symlink_to(model.resolve(), target_is_directory=True)
        try:
            converter = get_model_class(architecture)(
                named,
                gguf.LlamaFileType[kind],
                path,
                model_name=name,
                # Unpacking of ternary weights mixes real tensors with the lazy ones' placeholders.
                eager=hparams.get("quantization_config", {}).get("quant_method") == "bitnet",
            )
            if "n_positions" in converter.hparams:  # transformers no longer writes both of GPT-2's
                converter.hparams.setdefault("n_ctx", converter.hparams["n_positions"])
            known = converter.get_vocab_base_pre
            converter.get_vocab_base_pre = lambda tokenizer: _pre_tokenizer(tokenizer, known)
            lattice = read_lattice(model)
            if lattice and lattice.fits(type):
                _store_on_lattice(converter, type, lattice)
            elif type in BEYOND_CONVERTER:
                quantized = gguf.GGMLQuantizationType[type.upper()]
                _force(converter, lambda _: quantized)
            converter.write()
        except (NotImplementedError, FileNotFoundError, AssertionError, KeyError) as error:
            cause = str(error) or "it has more tokens than the model"
            raise LoradagError(
                f"export.formats: llama.cpp's converter cannot convert {architecture} with this "
                f"tokenizer: {cause}. Take export=safetensors."
            ) from error
    return {
        tensor.name: tensor.tensor_type.name.lower()
        for tensor in gguf.GGUFReader(path).tensors
        if len(tensor.shape) > 1 and tensor.tensor_type.name.lower() not in (type, "f32")
    }


def _store_on_lattice(converter: Any, type: str, lattice: Lattice) -> None:
    """Let the converter store matrices that are on the lattice in blocks of that lattice."""
    from conversion.base import LazyTorchTensor
    from gguf import GGMLQuantizationType

    modify, add = converter.modify_tensors, converter.gguf_writer.add_tensor
    stored: dict[str, Any] = {}

    def modify_and_keep(data: Any, name: str, block: int | None) -> Iterator[tuple[str, Any]]:
        for new_name, tensor in modify(data, name, block):
            if tensor.dim() == 2:
                weight = LazyTorchTensor.to_eager(tensor)
                blocks = lattice.encode(weight.float().numpy(), type)
                if blocks is not None:
                    stored[new_name] = blocks
            yield new_name, tensor

    def add_stored(name: str, data: Any, **options: Any) -> None:
        add(name, stored.pop(name, data), **options)

    converter.modify_tensors = modify_and_keep
    converter.gguf_writer.add_tensor = add_stored
    kind = GGMLQuantizationType[type.upper()]
    _force(converter, lambda name: kind if name in stored else GGMLQuantizationType.F16)


def _force(converter: Any, choose: Callable[[str], Any]) -> None:
    """Let `choose` name a matrix's type, also one that the converter has no output type for."""
    from gguf import MODEL_TENSOR

    exact = (
        MODEL_TENSOR.POS_EMBD, MODEL_TENSOR.TOKEN_TYPES,
        MODEL_TENSOR.FFN_GATE_INP, MODEL_TENSOR.FFN_GATE_INP_SHEXP,
    )  # fmt: skip
    own = converter.tensor_force_quant

    def force(name: str, new_name: str, block: int | None, dimensions: int) -> Any:
        is_exact = any(converter.match_model_tensor_name(new_name, key, block) for key in exact)
        if dimensions < 2 or is_exact or not new_name.endswith(".weight"):
            return own(name, new_name, block, dimensions)
        return choose(new_name)

    converter.tensor_force_quant = force


def _pre_tokenizer(tokenizer: Any, known: Any) -> str:
    """llama.cpp's name of the tokenizer's splitting rule.

    The converter knows tokenizers by a hash of what they make of a text, so it knows no tokenizer
    of one's own: there the rule itself decides. The export's proof holds both to the contract.
    """
    logger = logging.getLogger("hf-to-gguf")
    logger.disabled = True
    try:
        return str(known(tokenizer))
    except NotImplementedError:
        rule = json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]
        steps = tuple(_step(step) for step in rule.get("pretokenizers", [rule]))
        if steps not in PRE_TOKENIZERS:
            raise
        return PRE_TOKENIZERS[steps]
    finally:
        logger.disabled = False


def _step(step: dict[str, Any]) -> str:
    if step["type"] == "Split":
        return str(step["pattern"].get("Regex"))
    plain = {
        "Digits": step.get("individual_digits") is True,
        "ByteLevel": step.get("add_prefix_space") is False,
    }
    return step["type"] if plain.get(step["type"]) else json.dumps(step)


def rounded(
    weight: torch.Tensor, type: str, transposed: bool, lattice: Lattice | None = None
) -> torch.Tensor:
    """What a float32 matrix (out, in) is after a round trip through `type`, as the file has it.

    Args:
        transposed: the matrix is (in, out).
        lattice: of a model that was trained on one.
    """
    import gguf
    import torch

    if type in ("f32", "f16", "bf16"):
        names = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
        return weight.to(names[type]).float()
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
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    done = set()
    for module in model.modules():
        weight = getattr(module, "weight", None)
        matrix = isinstance(module, torch.nn.Linear | Conv1D) or module in embeddings
        if matrix and weight is not None and weight.data_ptr() not in done:
            kind = "f16" if type.startswith("tq") and module in embeddings else type
            weight.data.copy_(
                rounded(weight.data.float().cpu(), kind, isinstance(module, Conv1D), lattice)
            )
            done.add(weight.data_ptr())
