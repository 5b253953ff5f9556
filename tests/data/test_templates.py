import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradag.data.templates import Template, encode, encode_prompt, render, render_prompt
from loradag.models.tokenizer import load_tokenizer

PLAIN = Template("plain", "Quote: {quote}", "\nAuthor: {author}")
CHAT = Template("chat", "{quote}", "{author}")
FIELDS = {"quote": "Less is more.", "author": "Mies"}


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


def test_the_guides_recipe(tokenizer) -> None:
    prompt, completion = render(PLAIN, FIELDS, tokenizer)
    assert prompt + completion == "Quote: Less is more.\nAuthor: Mies"
    ids, _ = encode(prompt, completion, tokenizer)
    assert tokenizer.decode(ids) == "Quote: Less is more.\nAuthor: Mies<|im_end|>"


@pytest.mark.parametrize("template", [PLAIN, CHAT])
def test_the_mask_covers_the_completion_and_one_eos(tokenizer, template) -> None:
    prompt, completion = render(template, FIELDS, tokenizer)
    ids, mask = encode(prompt, completion, tokenizer)
    kept = [id for id, in_completion in zip(ids, mask, strict=True) if in_completion]
    text = tokenizer.decode(kept)
    assert text.rstrip("\n").endswith("Mies<|im_end|>")
    assert "Less" not in text
    assert "Author" in text or template is CHAT
    assert kept.count(tokenizer.eos_token_id) == 1
    assert mask[-1] == 1


def test_a_chat_prompt_ends_where_the_models_turn_begins(tokenizer) -> None:
    prompt, completion = render(CHAT, FIELDS, tokenizer)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert completion == "Mies<|im_end|>"


def test_a_rendered_text_is_never_rendered_again(tokenizer) -> None:
    template = Template("rendered", "", "{text}")
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"
    assert render(template, {"text": text}, tokenizer) == ("", text)
    ids, _ = encode("", text, tokenizer)
    assert tokenizer.decode(ids) == text  # no second BOS, no second EOS


def test_generation_uses_the_training_template(tokenizer) -> None:
    assert render_prompt(PLAIN, "Be", tokenizer) == "Quote: Be"
    opening, _ = render(CHAT, {"quote": "Be", "author": "x"}, tokenizer)
    assert render_prompt(CHAT, "Be", tokenizer) == opening


@given(st.text(max_size=40), st.text(max_size=40))
def test_prompt_and_completion_are_tokenised_as_one_text(tokenizer, prompt, completion) -> None:
    ids, mask = encode(prompt, completion, tokenizer)
    whole = encode_prompt(prompt + completion, tokenizer)
    assert ids[: len(whole)] == whole
    assert len(ids) == len(mask)
    assert ids[-1] == tokenizer.eos_token_id
    assert mask == sorted(mask)  # the completion comes last
