"""What every exported format is measured on, and what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIALOGUE = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "It is Paris."},
    {"role": "user", "content": "And that of Spain?"},
]
DIALOGUES = [DIALOGUE[1:2], DIALOGUE[1:], DIALOGUE]


def render_dialogue(
    tokenizer: Any,
    messages: list[dict[str, str]],
    opened: bool = True,
    variables: dict[str, Any] | None = None,
) -> str | None:
    """`messages` in the tokenizer's chat template; None: it refuses them.

    Args:
        opened: up to where the model's next turn begins.
        variables: that the template is given, besides those of transformers.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opened, **(variables or {})
        )
    except (TemplateError, TypeError):  # no system turn, or only dialogues with tools
        return None
    return text


def without_added_bos(text: str, tokenizer: Any) -> str:
    """A rendered text without the BOS that the tokenizer adds to every text by itself."""
    adds_bos = tokenizer.bos_token_id in tokenizer("")["input_ids"]
    return text.removeprefix(tokenizer.bos_token) if adds_bos else text


def rendered_dialogues(tokenizer: Any) -> list[list[dict[str, str]]]:
    """The dialogues that the chat template renders in full.

    Some templates drop a system turn, which llama.cpp then puts into the user's.
    """
    if not tokenizer.chat_template:
        return []
    rendered = [(dialogue, render_dialogue(tokenizer, dialogue)) for dialogue in DIALOGUES]
    return [
        dialogue
        for dialogue, text in rendered
        if text is not None and all(turn["content"] in text for turn in dialogue)
    ]


@dataclass(frozen=True)
class Inputs:
    """What a runtime is given.

    Attributes:
        texts: to tokenize, with the special tokens that the runtime adds by itself.
        dialogues: for the chat template; none where the model has none.
        rows: token ids whose next-token distributions are compared, each row with an empty context.
        prompts: token ids that greedy text continues.
        max_new_tokens: of each greedy text.
    """

    texts: list[str]
    dialogues: list[list[dict[str, str]]]
    rows: list[list[int]]
    prompts: list[list[int]]
    max_new_tokens: int


@dataclass(frozen=True)
class Measurement:
    """What a runtime computes from `Inputs`.

    Attributes:
        logits: folder of a file a row, (tokens, vocabulary) in float32.
        openings: the dialogues as its chat template renders them, each up to the next answer.
        opening_ids: the ids of those texts.
        eos: the tokenizer's EOS.
        stops: ids that end a generated text.
        tokens_per_second: of greedy text, without the time that reading the prompt takes; 0 where
            no text has two tokens.
    """

    runtime: str
    logits: Path
    token_ids: list[list[int]]
    openings: list[str]
    opening_ids: list[list[int]]
    eos: int | None
    stops: list[int]
    greedy: list[list[int]]
    tokens_per_second: float
