"""Greedy continuations of prompts."""

from typing import Any, TypedDict

from loradag.data.templates import encode_prompt
from loradag.models.placement import input_device


class Sample(TypedDict):
    """What a model continues a prompt with."""

    text: str  # without special tokens
    ended: bool  # with EOS, within the tokens allowed


def sample_greedily(
    model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int
) -> list[Sample]:
    """The greedy continuation of each rendered prompt.

    One prompt at a time: padding would change the sums, and with them now and then a token.
    """
    continuations = [
        greedy_ids(model, encode_prompt(prompt, tokenizer), max_new_tokens) for prompt in prompts
    ]
    return [
        Sample(
            text=tokenizer.decode(ids, skip_special_tokens=True),
            ended=ids[-1:] == [tokenizer.eos_token_id],
        )
        for ids in continuations
    ]


def greedy_ids(model: Any, ids: list[int], max_new_tokens: int) -> list[int]:
    """The token ids that `model` continues `ids` with, EOS included."""
    import torch

    given = torch.tensor([ids], device=input_device(model))
    with torch.inference_mode():
        generated = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
        )
    return generated[0, len(ids) :].tolist()  # type: ignore[no-any-return]
