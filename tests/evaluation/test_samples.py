"""Greedy text in batches, and where it ends."""

import pytest
import torch

from loradag.evaluation.samples import greedy_ids, sample_greedily, stop_ids
from loradag.models.loading import load_model
from loradag.models.tokenizer import load_tokenizer

PROMPTS = [
    "Quote: Less is",
    "Quote: Be",
    "Quote: The way I understand it, the Russians are sort of",
]


@pytest.fixture
def model(tiny_base):
    return load_model(tiny_base, torch.float32)


def test_a_batch_continues_each_prompt_as_it_is_by_itself(model, tiny_base) -> None:
    tokenizer = load_tokenizer(tiny_base)
    alone = sample_greedily(model, tokenizer, PROMPTS, 8, batch_tokens=1)
    assert sample_greedily(model, tokenizer, PROMPTS, 8, batch_tokens=10_000) == alone
    assert len({sample["text"] for sample in alone}) > 1


def test_a_text_ends_with_any_of_the_tokens_that_the_model_stops_at(model, tiny_base) -> None:
    tokenizer = load_tokenizer(tiny_base)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    texts = greedy_ids(model, prompts, 8)
    assert [len(text) for text in texts] == [8, 8, 8]
    assert not any(sample["ended"] for sample in sample_greedily(model, tokenizer, PROMPTS, 8, 999))
    turn_end = texts[0][-1]
    assert any(turn_end not in text for text in texts)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, turn_end]
    assert stop_ids(model) == {tokenizer.eos_token_id, turn_end}
    expected = [
        text[: text.index(turn_end) + 1] if turn_end in text else text  # others are continued
        for text in texts
    ]
    assert greedy_ids(model, prompts, 8) == expected
    samples = sample_greedily(model, tokenizer, PROMPTS, 8, 999)
    assert [sample["ended"] for sample in samples] == [turn_end in text for text in texts]
