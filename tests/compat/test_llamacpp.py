"""llama.cpp's C interface in xllamacpp's extension module."""

from pathlib import Path

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
