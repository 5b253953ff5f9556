"""llama.cpp's C interface (https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h).

xllamacpp publishes llama.cpp's server alone, which returns the probabilities of a prompt's tokens
only one request a token: for 400 tokens of a 135M model 25 seconds, where one decoding of a row
takes 0.1. Its extension module carries llama.cpp with all of its C functions exported, so they are
called here through ctypes. The functions are llama.cpp's public interface; that xllamacpp exports
them, and the layout of the parameters' structs, is private.

For xllamacpp 2026.10.*: the layout is checked against llama.cpp's own defaults, and what was set is
read back. Unnecessary once xllamacpp itself offers the logits of a whole prompt.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from loradag.config.problems import LoradagError

Array = np.ndarray[Any, Any]

FLASH_ATTENTION_OFF = 0
F32 = 0  # ggml_type
ERROR = 4  # ggml_log_level
SPARE_BYTES = 1024  # so that a longer struct of another version is not written past its end


class ModelParams(ctypes.Structure):
    """`llama_model_params`, passed on as llama.cpp fills it."""

    _fields_ = [("opaque", ctypes.c_uint64 * (SPARE_BYTES // 8))]


class ContextParams(ctypes.Structure):
    """`llama_context_params` up to the last field that is set here."""

    _fields_ = [
        *((name, ctypes.c_uint32) for name in (
            "n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq", "n_outputs_max",
            "n_outputs_max_per_seq",
        )),
        *((name, ctypes.c_int32) for name in (
            "n_threads", "n_threads_batch", "ctx_type", "rope_scaling_type", "pooling_type",
            "attention_type", "flash_attn_type",
        )),
        *((name, ctypes.c_float) for name in (
            "rope_freq_base", "rope_freq_scale", "yarn_ext_factor", "yarn_attn_factor",
            "yarn_beta_fast", "yarn_beta_slow",
        )),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int32),
        ("type_v", ctypes.c_int32),
        ("rest", ctypes.c_uint64 * (SPARE_BYTES // 8)),
    ]  # fmt: skip


# What `llama_context_default_params` gives where the layout is the one above.
DEFAULTS = {
    "n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4,
    "n_threads_batch": 4, "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1,
    "flash_attn_type": -1, "rope_freq_base": 0.0, "yarn_ext_factor": -1.0, "yarn_orig_ctx": 0,
    "cb_eval": None, "type_k": 1, "type_v": 1,
}  # fmt: skip


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    ]


@cache
def library() -> ctypes.CDLL:
    """xllamacpp's extension module, as the C library that it is, too.

    Raises:
        LoradagError: it does not export llama.cpp's functions, or their structs have changed.
    """
    from xllamacpp import xllamacpp

    found = ctypes.CDLL(xllamacpp.__file__)
    pointer = ctypes.c_void_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "llama_model_default_params": (ModelParams, []),
        "llama_context_default_params": (ContextParams, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, ModelParams]),
        "llama_init_from_model": (pointer, [pointer, ContextParams]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (ctypes.c_int32, [pointer]),
        "llama_vocab_eos": (ctypes.c_int32, [pointer]),
        "llama_vocab_is_eog": (ctypes.c_bool, [pointer, ctypes.c_int32]),
        "llama_n_ctx": (ctypes.c_uint32, [pointer]),
        "llama_n_batch": (ctypes.c_uint32, [pointer]),
        "llama_n_threads": (ctypes.c_int32, [pointer]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_batch_init": (Batch, [ctypes.c_int32] * 3),
        "llama_batch_free": (None, [Batch]),
        "llama_decode": (ctypes.c_int32, [pointer, Batch]),
        "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [pointer]),
        "llama_adapter_lora_init": (pointer, [pointer, ctypes.c_char_p]),
        "llama_set_adapters_lora": (
            ctypes.c_int32,
            [pointer, ctypes.POINTER(pointer), ctypes.c_size_t, ctypes.POINTER(ctypes.c_float)],
        ),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_log_set": (None, [pointer, pointer]),
        "ggml_backend_load_all": (None, []),
        "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
        "ggml_quantize_chunk": (
            ctypes.c_size_t, [ctypes.c_int, pointer, pointer, *[ctypes.c_int64] * 3, pointer],
        ),
    }  # fmt: skip
    missing = [name for name in signatures if not hasattr(found, name)]
    if missing:
        raise LoradagError(
            f"xllamacpp does not export {', '.join(missing)}. Install the version that "
            "constraints.txt names."
        )
    for name, (result, arguments) in signatures.items():
        getattr(found, name).restype = result
        getattr(found, name).argtypes = arguments
    params = found.llama_context_default_params()
    changed = {
        name: getattr(params, name)
        for name, value in DEFAULTS.items()
        if getattr(params, name) != value
    }
    if changed:
        raise LoradagError(
            f"llama_context_params of this xllamacpp has another layout ({changed}). Install the "
            "version that constraints.txt names."
        )
    return found


# What llama.cpp has logged as errors since `library` was loaded; nothing of its log is printed.
_log: list[str] = []


def _append(level: int, text: bytes, _: object) -> None:
    if level == ERROR:
        _log.append(text.decode(errors="replace").strip())


_keep = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_append)


def _reason() -> str:
    """llama.cpp's own reason: the first error of its log, which names the cause."""
    return _log[0] if _log else "it gives no reason"


def quantize_rows(rows: Array, type: int, importance: Array | None, threads: int = 1) -> Array:
    """The rows (out, in) of a float32 matrix as blocks of a GGML type: (out, bytes) in uint8.

    llama.cpp's own quantiser, `ggml_quantize_chunk` of its ggml.h. The gguf package has none for
    K-quants, nor for any type with an importance of the columns. Unnecessary once xllamacpp offers
    `llama_model_quantize`.

    Args:
        type: the number of a `gguf.GGMLQuantizationType`.
        importance: (in,), the weight of each column's squared error; None: all alike.

    Raises:
        LoradagError: a number is not finite; llama.cpp would write blocks that no runtime loads.
    """
    given = np.ascontiguousarray(rows, np.float32)
    columns = given.shape[1]
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if not np.isfinite(given).all() or not (weights is None or np.isfinite(weights).all()):
        raise LoradagError("a matrix, or the importance of its columns, contains NaN or infinity.")
    if weights is not None and weights.shape != (columns,):
        raise LoradagError(f"{weights.size} columns have an importance, the matrix {columns}.")
    ggml = library()
    blocks = np.empty((len(given), ggml.ggml_row_size(type, columns)), np.uint8)
    pointer = None if weights is None else weights.ctypes.data

    def quantize(part: Array) -> None:
        ggml.ggml_quantize_chunk(
            type, given[part[0]:].ctypes.data, blocks[part[0]:].ctypes.data, 0, len(part), columns,
            pointer,
        )  # fmt: skip

    parts = [part for part in np.array_split(np.arange(len(given)), threads) if len(part)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(quantize, parts))
    return blocks


class Decoder:
    """A GGUF file in llama.cpp: logits of every token of a row.

    Keys and values are kept in float32 and attention is computed without flash attention, so that
    what is compared is the file, not the rounding of a cache.
    """

    def __init__(self, file: Path, longest: int, threads: int, adapter: Path | None = None) -> None:
        """Load `file` for rows of up to `longest` tokens, with a LoRA file applied to it.

        Raises:
            LoradagError: llama.cpp refuses a file, with its own reason.
        """
        self.library = library()
        self.library.ggml_backend_load_all()
        # A server of the same process prints llama.cpp's log by itself.
        self.library.llama_log_set(ctypes.cast(_keep, ctypes.c_void_p), None)
        _log.clear()
        self.model = self.library.llama_model_load_from_file(
            str(file).encode(), self.library.llama_model_default_params()
        )
        if not self.model:
            raise LoradagError(f"llama.cpp refuses {file.name}: {_reason()}")
        params = self.library.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = longest
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type, params.type_k, params.type_v = FLASH_ATTENTION_OFF, F32, F32
        self.context = self.library.llama_init_from_model(self.model, params)
        if not self.context:
            raise LoradagError(f"llama.cpp cannot run {file.name}: {_reason()}")
        taken = (
            self.library.llama_n_batch(self.context),
            self.library.llama_n_threads(self.context),
        )
        if self.library.llama_n_ctx(self.context) < longest or taken != (longest, threads):
            raise LoradagError(
                "llama.cpp did not take the parameters that it was given. Install the version of "
                "xllamacpp that constraints.txt names."
            )
        if adapter:
            self._apply(adapter)
        self.vocab = self.library.llama_model_get_vocab(self.model)
        self.vocabulary = int(self.library.llama_vocab_n_tokens(self.vocab))
        self.longest = longest

    def _apply(self, adapter: Path) -> None:
        """Add a LoRA file with factor 1; the model frees it."""
        loaded = self.library.llama_adapter_lora_init(self.model, str(adapter).encode())
        adapters, factors = (ctypes.c_void_p * 1)(loaded), (ctypes.c_float * 1)(1.0)
        if not loaded or self.library.llama_set_adapters_lora(self.context, adapters, 1, factors):
            raise LoradagError(f"llama.cpp refuses {adapter.name}: {_reason()}")

    @property
    def eos(self) -> int | None:
        """The file's EOS; None: it has none."""
        found = int(self.library.llama_vocab_eos(self.vocab))
        return found if found >= 0 else None

    def stops(self) -> list[int]:
        """The ids at which llama.cpp ends a text: the EOS, and others that it knows by name."""
        is_end = self.library.llama_vocab_is_eog
        return [id for id in range(self.vocabulary) if is_end(self.vocab, id)]

    def logits(self, ids: list[int]) -> Array:
        """(tokens, vocabulary) in float32, with an empty context.

        Raises:
            LoradagError: the row is longer than announced, or llama.cpp fails.
        """
        if len(ids) > self.longest:
            raise LoradagError(f"a row has {len(ids)} tokens, more than {self.longest}.")
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), True)
        batch = self.library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for at, id in enumerate(ids):
            batch.token[at], batch.pos[at] = id, at
            batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, 0, 1
        _log.clear()
        failed = self.library.llama_decode(self.context, batch)
        self.library.llama_batch_free(batch)
        if failed:
            raise LoradagError(f"llama.cpp cannot decode a row of {len(ids)} tokens: {_reason()}")
        flat = self.library.llama_get_logits(self.context)
        return np.ctypeslib.as_array(flat, (len(ids), self.vocabulary)).copy()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.library.llama_free(self.context)
        self.library.llama_model_free(self.model)
