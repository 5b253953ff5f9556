"""The Modelfile's template against what the tokenizer itself renders."""

from pathlib import Path
from typing import Any

import pytest

from loradag.export.modelfile import read_turns
from loradag.models.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
)
COUNTS = "{% for m in messages %}{{ loop.index }}{{ m['role'] }}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def test_reads_chatml(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    turns = read_turns(tokenizer)
    assert turns is not None
    assert turns.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert turns.default == ""
    assert turns.opening == "<|im_start|>assistant\n"
    assert turns.go().count("{{ .Content }}") == 3
    assert turns.go().count("{{ end }}") == 2  # of the role and of the range
    assert '{{ if eq .Role "system" }}' in turns.go()


def test_reads_a_default_system_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = DEFAULT + CHATML
    turns = read_turns(tokenizer)
    assert turns is not None
    assert turns.default == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert turns.go().startswith('{{ if ne (index .Messages 0).Role "system" }}')


def test_a_template_that_is_no_sequence_of_turns_is_left_to_the_file(tokenizer: Any) -> None:
    tokenizer.chat_template = COUNTS
    assert read_turns(tokenizer) is None
