"""Options of loading: the attention implementation, and what is compiled."""

from dataclasses import replace

import pytest
import torch

from loradag.config.problems import LoradagError
from loradag.models.loading import load_model
from loradag.training import bitnet
from loradag.training.method import load_trainable
from tests.training.conftest import copied


def test_every_method_trains_with_the_attention_that_is_asked_for(trained, tmp_path):
    paths, config = copied(trained, tmp_path)
    full = replace(config.adapter, variant="none")
    qat = {"method": "qat", "weight_bits": 4, "group_size": 32}
    bitnet_options = {"method": "bitnet", "activation_bits": 8}
    for adapter, options in (
        (config.adapter, {}),
        (full, {}),
        (full, qat),
        (config.adapter, qat),
        (full, bitnet_options),
    ):
        train = replace(config.train, attention="eager", **options)
        model = load_trainable(paths, adapter, train, 0, torch.float32, tmp_path).model
        assert model.config._attn_implementation == "eager"


def test_auto_is_the_choice_of_transformers(tiny_base):
    assert load_model(tiny_base, torch.float32).config._attn_implementation == "sdpa"


def test_an_implementation_that_is_not_here_is_refused(tiny_base):
    with pytest.raises(LoradagError, match=r"train\.attention = 'flash_attention_2': .*auto"):
        load_model(tiny_base, torch.float32, "flash_attention_2")


def test_only_bitnet_turns_compilation_off(tiny_base):
    compiled = []

    def backend(graph, _):
        compiled.append(graph)
        return graph.forward

    def run() -> int:
        torch.compiler.reset()
        compiled.clear()
        torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
        return len(compiled)

    torch.compiler.set_stance("default")
    try:
        load_model(tiny_base, torch.float32)
        assert run() == 1
        bitnet.load_masters(tiny_base)
        assert run() == 0
    finally:
        torch.compiler.set_stance("default")
