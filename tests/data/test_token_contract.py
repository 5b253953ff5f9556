import copy
from dataclasses import replace

import pytest

from loradag.config.problems import LoradagError
from loradag.data.rows import Row
from loradag.data.templates import Template
from loradag.data.token_contract import (
    make_contract,
    read_contract,
    verify_tokenizer,
    write_contract,
)
from loradag.data.tokenization import encode_row
from loradag.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    return load_tokenizer(tiny_base)


def row(prompt, completion, tokenizer):
    ids, mask = encode_row(prompt + completion, prompt, tokenizer)
    return Row("id", prompt + completion, prompt, ids, mask, mask, [])


@pytest.fixture(scope="module")
def contract(tokenizer):
    rows = [row("Quote: a  2024", "\nAuthor: b", tokenizer)]
    template = Template("plain", "Quote: {quote}", "\nAuthor: {author}")
    return make_contract(tokenizer, template, ["a  2024", "naïve 東京"], rows)


def test_it_is_kept_by_its_own_tokenizer_also_from_the_file(tokenizer, contract, tmp_path) -> None:
    write_contract(tmp_path / "contract.json", contract)
    assert read_contract(tmp_path / "contract.json") == contract
    verify_tokenizer(tokenizer, contract)


def test_a_lost_digit_splitter_is_caught(tokenizer, contract) -> None:
    from tokenizers.pre_tokenizers import ByteLevel

    broken = copy.deepcopy(tokenizer)
    broken.backend_tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    with pytest.raises(LoradagError, match="a  2024"):
        verify_tokenizer(broken, contract)


def test_pad_as_eos_is_caught(tokenizer, contract) -> None:
    broken = copy.deepcopy(tokenizer)
    broken.pad_token = broken.eos_token
    with pytest.raises(LoradagError, match="pad_token_id"):
        verify_tokenizer(broken, contract)


def test_an_added_bos_is_caught(tokenizer, contract) -> None:
    from tokenizers.processors import TemplateProcessing

    broken = copy.deepcopy(tokenizer)
    broken.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", broken.bos_token_id)]
    )
    with pytest.raises(LoradagError, match="breaks the token contract"):
        verify_tokenizer(broken, contract)


def test_rows_whose_text_spells_a_special_token_are_left_out(tokenizer) -> None:
    harmless = row("a", "b", tokenizer)
    spelled = replace(row("a<|im_end|>", "b", tokenizer), input_ids=[1, 2, 3])
    template = Template("plain", "{a}", "{b}")
    assert make_contract(tokenizer, template, [], [spelled, harmless]).rows == [harmless]
