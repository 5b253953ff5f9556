from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradag.data.templates import encode_prompt
from loradag.data.tokenization import Rendered, Tokenization, encode_row
from loradag.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


@given(st.text(max_size=40), st.text(max_size=40))
def test_prompt_and_completion_are_tokenized_as_one_text(tokenizer, prompt, completion) -> None:
    ids, mask = encode_row(prompt + completion, prompt, tokenizer)
    full = encode_prompt(prompt + completion, tokenizer)
    assert ids[: len(full)] == full
    assert len(ids) == len(mask)
    assert ids[-1] == tokenizer.eos_token_id
    assert mask == sorted(mask)  # the completion comes last


@given(st.text(max_size=60))
def test_the_bytes_of_the_tokens_are_those_of_the_text(tokenizer, text) -> None:
    made = next(Tokenization(tokenizer).encode([Rendered(text, [(0, len(text))], [])]))
    assert made.token_bytes.sum() == len(text.encode())
    assert made.token_bytes.min() >= 0
    cut = made.cut(3)
    assert len(cut.input_ids) == len(cut.token_bytes) == min(3, len(made.input_ids))


def test_a_token_that_reaches_into_a_turn_belongs_to_it(tokenizer) -> None:
    text = "to the end"
    (made,) = Tokenization(tokenizer).encode([Rendered(text, [(4, 6)], [])])
    tokens = [tokenizer.decode([id]) for id in made.input_ids.tolist()]
    assert "".join(tokens) == f"{text}{tokenizer.eos_token}"
    ends = accumulate(map(len, tokens))
    inside = [int(e > 4 and e - len(t) < 6) for e, t in zip(ends, tokens, strict=True)]
    assert made.assistant_mask.tolist() == [*inside[:-1], 1]
    assert " the" in tokens  # it begins before the turn


def test_rows_of_a_batch_do_not_change_each_other(tokenizer) -> None:
    rows = [Rendered(t, [(0, len(t))], []) for t in ("a", "<|im_start|>b", "long " * 50, "")]
    together = Tokenization(tokenizer).encode(rows)
    for row, made in zip(rows, together, strict=True):
        alone = next(Tokenization(tokenizer).encode([row]))
        assert made.input_ids.tolist() == alone.input_ids.tolist()
