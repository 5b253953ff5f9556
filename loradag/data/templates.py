"""From a row's fields to text, and from text to token ids with the mask of the completion."""

from collections import defaultdict
from dataclasses import dataclass
from string import Formatter
from typing import Any


@dataclass(frozen=True)
class Template:
    """How rows are rendered: `kind` is `plain`, `chat` or `rendered`; two format strings."""

    kind: str
    prompt: str
    completion: str

    @property
    def fields(self) -> list[str]:
        """The fields that the format strings name, in order."""
        named = [name for _, name, _, _ in Formatter().parse(self.prompt + self.completion) if name]
        return list(dict.fromkeys(named))


def render(template: Template, fields: dict[str, Any], tokenizer: Any) -> tuple[str, str]:
    """The prompt and the completion of a row, as the model sees them.

    `chat` wraps both in the tokenizer's chat template: then the prompt ends where the model's own
    turn begins.
    """
    prompt = template.prompt.format(**fields)
    completion = template.completion.format(**fields)
    if template.kind != "chat":
        return prompt, completion
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": completion},
    ]
    opening = chat_prompt(messages[:1], tokenizer)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    if not whole.startswith(opening):
        raise ValueError("the chat template renders a prompt otherwise than its dialogue")
    return opening, whole[len(opening) :].rstrip("\n")


def render_prompt(template: Template, prompt: str, tokenizer: Any) -> str:
    """What the tuned model is given to go on from: `prompt` in the template it was trained with."""
    if template.kind == "plain":
        return template.prompt.format_map(defaultdict(lambda: prompt))
    if template.kind == "rendered" and tokenizer.chat_template is None:
        return prompt
    return chat_prompt([{"role": "user", "content": prompt}], tokenizer)


def chat_prompt(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """A dialogue up to where the model's next turn begins."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def encode_prompt(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a rendered text; one BOS at most, where the tokenizer has one to add."""
    ids: list[int] = tokenizer(text, add_special_tokens=not _opens_with_bos(text, tokenizer))[
        "input_ids"
    ]
    return ids


def encode(prompt: str, completion: str, tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids of a row and, for each, 1 where it belongs to the completion.

    Both are tokenised as one text, as a runtime would; a token that reaches into the completion
    belongs to it. The row ends with one EOS, which belongs to the completion.
    """
    text = prompt + completion
    encoded = tokenizer(
        text,
        add_special_tokens=not _opens_with_bos(text, tokenizer),
        return_offsets_mapping=True,
    )
    ids: list[int] = list(encoded["input_ids"])
    mask = [int(end > len(prompt)) for _, end in encoded["offset_mapping"]]
    if ids[-1:] != [tokenizer.eos_token_id]:
        ids.append(tokenizer.eos_token_id)
        mask.append(1)
    return ids, mask


def _opens_with_bos(text: str, tokenizer: Any) -> bool:
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
