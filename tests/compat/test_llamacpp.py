"""llama.cpp's C interface in xllamacpp's extension module."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from loradag.compat import llamacpp
from loradag.compat.llamacpp import Decoder
from loradag.config.problems import LoradagError
from loradag.export.gguf_format import write_gguf
from loradag.runtime import Paths


@pytest.fixture(scope="module")
def file(exportable: Paths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(exportable.merged, path, "f32", "tiny")
    return path


def test_a_rows_logits_do_not_depend_on_the_rows_before(file: Path) -> None:
    with Decoder(file, 16, threads=1) as decoder:
        first = decoder.logits([5, 6, 7])
        decoder.logits(list(range(16)))
        again = decoder.logits([5, 6, 7])
    assert first.shape == (3, decoder.vocabulary)
    assert np.array_equal(first, again)


def test_a_longer_row_than_was_announced_is_refused(file: Path) -> None:
    with Decoder(file, 4, threads=1) as decoder, pytest.raises(LoradagError, match="5 tokens"):
        decoder.logits([1, 2, 3, 4, 5])


def test_a_changed_layout_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where llama.cpp inserts a field: every default after it is read in the wrong place."""
    llamacpp.library.cache_clear()
    monkeypatch.setitem(llamacpp.DEFAULTS, "n_batch", 512)
    with pytest.raises(LoradagError, match="another layout"):
        llamacpp.library()
    llamacpp.library.cache_clear()


def test_llama_cpps_own_reason(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(LoradagError, match=r"refuses broken\.gguf: .*bad GGUF version"):
        Decoder(tmp_path / "broken.gguf", 4, threads=1)


def quantize(rows: np.ndarray, type: str, *given: Any) -> np.ndarray:
    return llamacpp.quantize_rows(rows, gguf.GGMLQuantizationType[type.upper()], *given)


@pytest.mark.parametrize("type", ["q8_0", "q4_0", "q5_1"])
def test_blocks_are_those_of_the_gguf_package(type: str) -> None:
    rows = np.random.default_rng(0).normal(size=(8, 256)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[type.upper()]
    assert np.array_equal(quantize(rows, type, None), gguf.quants.quantize(rows, kind))


@pytest.mark.parametrize("type", ["q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "iq4_nl"])
def test_k_quants_round_to_their_bits_whatever_the_threads(type: str) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 512)).astype(np.float32)
    importance = np.random.default_rng(1).uniform(0, 2, 512).astype(np.float32)
    importance[:32] = 0  # columns that are never read
    blocks = quantize(rows, type, importance, 1)
    assert np.array_equal(blocks, quantize(rows, type, importance, 3))
    decoded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type.upper()])
    error = ((decoded - rows)[:, 32:] ** 2).mean() ** 0.5
    # A uniform step over ±4 standard deviations has an RMSE of step / sqrt(12).
    bits = 4 if type.startswith("iq4") else int(type[1])
    assert 0.1 < error / (8 / 2**bits / 12**0.5) < 1
    assert np.isfinite(decoded).all()


@pytest.mark.parametrize(
    ("value", "importance", "message"),
    [
        (np.inf, None, "NaN or infinity"),
        (1, np.full(256, np.nan), "NaN or infinity"),
        (1, np.ones(9), "9 c"),
    ],
)
def test_what_would_be_blocks_of_nonsense_is_refused(
    value: float, importance: np.ndarray | None, message: str
) -> None:
    with pytest.raises(LoradagError, match=message):
        quantize(np.full((2, 256), value, np.float32), "q4_k", importance)
