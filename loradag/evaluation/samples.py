"""Greedy continuations of prompts."""

from typing import Any, TypedDict

from loradag.data.templates import encode_prompt
from loradag.models.placement import input_device


class Sample(TypedDict):
    """What a model continues a prompt with."""

    text: str  # without special tokens
    ended: bool  # by the model, within the tokens allowed


def sample_greedily(
    model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int, batch_tokens: int
) -> list[Sample]:
    """The greedy continuation of each rendered prompt.

    Args:
        batch_tokens: of the prompts in a batch, their padding and their continuations, at most
            (one prompt at least).
    """
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    longest = max(map(len, encoded), default=0) + max_new_tokens
    size = max(1, batch_tokens // longest)
    stops = stop_ids(model)
    return [
        Sample(
            text=tokenizer.decode(ids, skip_special_tokens=True),
            ended=not stops.isdisjoint(ids[-1:]),
        )
        for begin in range(0, len(encoded), size)
        for ids in greedy_ids(model, encoded[begin : begin + size], max_new_tokens)
    ]


def stop_ids(model: Any) -> set[int]:
    """The tokens that end a text: EOS, of some models also the end of a turn."""
    ids = model.generation_config.eos_token_id
    return {*ids} if isinstance(ids, list) else {ids}


def greedy_ids(model: Any, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The token ids that `model` continues each prompt with, the one that stops it included.

    The prompts are computed as one batch, padded on the left: a token costs the reading of all
    weights, for one prompt as for eight.
    """
    import torch

    if not prompts:
        return []
    stops = stop_ids(model)
    pad = min(stops)  # masked before a prompt, cut off after a text
    longest = max(map(len, prompts))
    device = input_device(model)
    padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in prompts], device=device)
    mask = torch.tensor(
        [[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=device
    )
    with torch.inference_mode():
        generated = model.generate(
            input_ids=padded,
            attention_mask=mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
        )
    return [_until_stop(ids, stops) for ids in generated[:, longest:].tolist()]


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((at for at, id in enumerate(ids, 1) if id in stops), len(ids))
    return ids[:end]
