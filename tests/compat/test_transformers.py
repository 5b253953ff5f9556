import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from loradag.compat.gguf_loading import reading_gguf_once
from loradag.compat.transformers import (
    attention_implementation,
    float32_parameters,
    is_quantizable,
    skipped_modules,
)
from loradag.export.gguf_format import write_gguf
from loradag.models.loading import load_model


def test_parameters_that_an_architecture_keeps_in_float32(tiny_base, monkeypatch):
    model = load_model(tiny_base, torch.float32)
    assert not float32_parameters(model, torch.bfloat16)("model.norm.weight")
    monkeypatch.setattr(model, "_keep_in_fp32_modules_strict", ["layers.*.mlp.gate"])
    kept = float32_parameters(model, torch.bfloat16)
    assert kept("model.layers.1.mlp.gate_proj.weight")
    assert not kept("model.layers.1.mlp.up_proj.weight")
    assert not float32_parameters(model, torch.float32)("model.layers.1.mlp.gate_proj.weight")


@pytest.mark.parametrize(("asked", "named"), [("auto", "sdpa"), ("eager", "eager")])
def test_the_attention_that_is_named_computes(tiny_base, monkeypatch, asked, named):
    called = []
    computes = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **options):
        called.append(1)
        return computes(*args, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    model = load_model(tiny_base, torch.float32, asked)
    model(torch.tensor([[5, 6, 7]]))
    assert attention_implementation(model) == named
    assert bool(called) == (named == "sdpa")


def test_the_layers_are_those_that_transformers_quantises(tiny_base):
    import bitsandbytes as bnb

    skip = ["k_proj", "model.layers.0.mlp"]
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_base))
    skipped = skipped_modules(plain, skip)
    ours = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, torch.nn.Linear) and is_quantizable(name, skipped)
    }
    quantized = AutoModelForCausalLM.from_pretrained(
        tiny_base,
        device_map={"": "cpu"},
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=skipped),
    )
    theirs = {n for n, m in quantized.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert ours == theirs
    assert len(ours) == 14 - 2 - 3


def test_one_reading_of_a_gguf_file_gives_the_same_model(tiny_base, tmp_path, monkeypatch):
    import gguf
    from transformers import AutoTokenizer, GgufConfig

    opened = []
    init = gguf.GGUFReader.__init__
    monkeypatch.setattr(
        gguf.GGUFReader, "__init__", lambda *args: (opened.append(args[1]), init(*args))[1]
    )
    write_gguf(tiny_base, tmp_path / "model.gguf", "q4_1", "tiny")

    def load(folder):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path,
            gguf_file="model.gguf",
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float16,
        )
        model.save_pretrained(tmp_path / folder)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
        tokenizer.save_pretrained(tmp_path / folder)
        return {file.name: file.read_bytes() for file in sorted((tmp_path / folder).iterdir())}

    plain = load("plain")
    read_before = len(opened)
    with reading_gguf_once():
        once = load("once")
    assert len(opened) - read_before == 1 < read_before
    assert plain.keys() == once.keys()
    assert all(plain[name] == once[name] for name in plain)
    assert gguf.get_tensor_name_map.__module__.startswith("gguf"), "left patched"
