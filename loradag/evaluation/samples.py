"""What a model says: greedy continuations."""

from typing import Any

from loradag.data.templates import encode_prompt


def greedy(model: Any, tokenizer: Any, prompts: list[str], max_new_tokens: int) -> list[str]:
    """The greedy continuation of each rendered prompt, without special tokens.

    One prompt at a time: padding would change the sums, and with them now and then a token.
    """
    return [
        tokenizer.decode(
            greedy_ids(model, encode_prompt(prompt, tokenizer), max_new_tokens),
            skip_special_tokens=True,
        )
        for prompt in prompts
    ]


def greedy_ids(model: Any, ids: list[int], max_new_tokens: int) -> list[int]:
    """The token ids that `model` goes on with after `ids`, up to and with EOS."""
    import torch

    given = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        whole = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
        )
    return whole[0, len(ids) :].tolist()  # type: ignore[no-any-return]
