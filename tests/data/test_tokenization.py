from itertools import accumulate
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from loradag.data.byte_tokens import ByteTokens, spell
from loradag.data.rendering import Renderer
from loradag.data.shapes import Example
from loradag.data.templates import Template, encode_prompt
from loradag.data.tokenization import Encoded, Rendered, Tokenization, encode_row
from loradag.models.tokenizer import load_tokenizer
from tests.data.conftest import marked


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


PIECES = st.sampled_from(
    [
        "<|im_end|>",
        "<|im_start|>",
        "\n\n",
        "  ",
        " the",
        "'s",
        "é",
        "e\u0301",
        "漢",
        "🙂",
        "7",
        "\r\n",
    ]
)


@settings(deadline=None)
@given(st.lists(st.lists(PIECES | st.text(max_size=5), max_size=8).map("".join), min_size=1))
def test_the_faster_implementation_makes_the_same_tokens(many, tokenizer, texts) -> None:
    rows = [Rendered(text, [(len(text) // 3, len(text))], []) for text in texts]
    for plain, fast in zip(Tokenization(tokenizer).encode(rows), many.encode(rows), strict=True):
        for name in Encoded.__dataclass_fields__:
            assert getattr(plain, name).tolist() == getattr(fast, name).tolist()
            assert getattr(plain, name).dtype == getattr(fast, name).dtype


@pytest.fixture(scope="module")
def many(tokenizer):
    made = Tokenization(tokenizer, many=True)
    assert made.byte_tokens is not None
    return made


def test_bos_and_eos_that_the_tokenizer_adds_are_outside_of_the_text(letters) -> None:
    tokenizer = letters(None, (), "<s>", "</s>", adds_bos=True)
    row = Rendered("né", [(1, 2)], [])
    for many in (False, True):
        (made,) = Tokenization(tokenizer, many).encode([row])
        assert tokenizer.convert_ids_to_tokens(made.input_ids)[::4] == ["<s>", "</s>"]
        assert made.token_bytes.tolist() == [0, 1, 2, 0, 0]
        assert made.assistant_mask.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("sides", [{"rstrip": True}, {"lstrip": True}])
@pytest.mark.parametrize("text", ["a <|x|> b", "<|x|>\n", "a<|x|>b <|x|>"])
def test_a_special_token_that_takes_its_spaces_along_is_letters_within_a_text(
    letters, sides: dict[str, bool], text: str
) -> None:
    tokenizer = letters()
    token = AddedToken("<|x|>", special=True, **sides)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    renderer = Renderer(tokenizer, Template("chat", "", ""))
    turns = [{"role": role, "content": f"{text}c"} for role in ("user", "assistant")]
    (made,) = Tokenization(tokenizer).encode([renderer.render(Example(turns))])
    expected = f"<|im_start|>user\n{text}c<|im_end|>\n<|im_start|>assistant\n«{text}c<|im_end|>»"
    ids, mask = made.input_ids.tolist(), made.assistant_mask.tolist()
    assert marked(tokenizer, ids, mask) == expected
    assert tokenizer.convert_tokens_to_ids("<|x|>") not in ids


def test_a_normalized_text_takes_the_slower_way(letters) -> None:
    from tokenizers.normalizers import NFC

    tokenizer = letters()
    tokenizer.backend_tokenizer.normalizer = NFC()
    many = Tokenization(tokenizer, many=True)
    assert many.byte_tokens is not None
    assert many.byte_tokens.encode(["e\u0301"]) is None
    assert many.byte_tokens.encode(["é"]) is not None
    rows = [Rendered("ae\u0301", [(1, 3)], [])]
    (made,), (plain,) = many.encode(rows), Tokenization(tokenizer).encode(rows)
    assert made.input_ids.tolist() == plain.input_ids.tolist()
    assert made.assistant_mask.tolist() == plain.assistant_mask.tolist()


def test_other_ids_are_noticed(letters, monkeypatch) -> None:
    made = ByteTokens(Tokenization(letters()).backend)
    encode = made.encoder.encode_batch_flat
    swapped = SimpleNamespace(
        encode_batch_flat=lambda texts, **options: encode([t[::-1] for t in texts], **options)
    )
    monkeypatch.setattr(made, "encoder", swapped)
    assert made.encode(["ab"]) is None
    assert made.encode(["aa"]) is not None


def test_vocabularies_that_are_not_bytes_are_left_to_tokenizers() -> None:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.BPE({"▁": 0, "a": 1}, []))
    with pytest.raises(ValueError, match="no token of bytes"):
        spell(backend)


def test_a_space_that_a_tokenizer_trims_from_its_offsets_is_trained_on(letters) -> None:
    from tokenizers.processors import ByteLevel, Sequence

    for processor in (ByteLevel(trim_offsets=True), Sequence([ByteLevel(trim_offsets=True)])):
        tokenizer = letters()
        tokenizer.backend_tokenizer.post_processor = processor
        (made,) = Tokenization(tokenizer).encode([Rendered("a b\n", [(1, 4)], [])])
        assert made.assistant_mask.tolist() == [0, 1, 1, 1, 1]
        assert made.token_bytes.tolist() == [1, 1, 1, 1, 0]
