import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest

from loradag.compat.gguf import BEYOND_CONVERTER, ConversionError, check_convertible, convert

MATRIX = "blk.0.ffn_up.weight"


def read(path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(path)


@pytest.mark.parametrize("type", BEYOND_CONVERTER)
def test_the_converter_takes_types_that_it_has_no_option_for(tiny_base, tmp_path, type):
    convert(tiny_base, tmp_path / "model.gguf", type, "tiny", None)
    types = {t.name: t.tensor_type.name.lower() for t in read(tmp_path / "model.gguf").tensors}
    assert types[MATRIX] == type
    assert types["blk.0.attn_norm.weight"] == "f32"


def test_blocks_are_stored_as_they_are_given(tiny_base, tmp_path):
    given = []

    def encode(weight):
        if weight.shape[0] == 64:
            return None
        blocks = gguf.quants.quantize(weight, gguf.GGMLQuantizationType.Q8_0)
        blocks[...] ^= 1  # no quantizer makes these
        given.append(blocks)
        return blocks

    convert(tiny_base, tmp_path / "model.gguf", "q8_0", "tiny", encode)
    stored = [t for t in read(tmp_path / "model.gguf").tensors if t.tensor_type.name == "Q8_0"]
    assert len(stored) == len(given) > 0
    for tensor in stored:
        assert any(np.array_equal(tensor.data, blocks) for blocks in given), tensor.name
    others = [t for t in read(tmp_path / "model.gguf").tensors if len(t.shape) == 2]
    assert {t.tensor_type.name for t in others} == {"Q8_0", "F16"}


def test_the_splitting_rule_of_an_unknown_tokenizer_is_named(tiny_base, tmp_path):
    convert(tiny_base, tmp_path / "model.gguf", "f16", "tiny", None)
    fields = read(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() in ("gpt-2", "smollm")
    assert isinstance(fields["tokenizer.ggml.add_bos_token"].contents(), bool)
    assert fields["general.name"].contents().lower() == "tiny"


def test_the_converters_reason_is_passed_on(tiny_base, tmp_path):
    check_convertible(tiny_base)
    shutil.copytree(tiny_base, tmp_path / "other")
    path = tmp_path / "other/config.json"
    config = json.loads(path.read_text()) | {"architectures": ["NoSuchForCausalLM"]}
    path.write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"NoSuchForCausalLM: .*not supported"):
        check_convertible(tmp_path / "other")
