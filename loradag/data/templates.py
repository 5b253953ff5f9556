"""The template of the rows, and the prompt that a tuned model is given in it."""

import datetime
import re
from collections import defaultdict
from dataclasses import dataclass
from string import Formatter
from typing import Any

# A call of `strftime_now`, which prints today's date, with its format as a literal.
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Template:
    """How rows are rendered: `kind` is `plain`, `chat` or `rendered`; two format strings.

    `date` is what chat templates print that would print today's.
    """

    kind: str
    prompt: str
    completion: str
    date: str = "2025-01-01"


def render_prompt(template: Template, prompt: str, tokenizer: Any) -> str:
    """What the tuned model is given to continue: `prompt` in the template it was trained with."""
    if template.kind == "plain":
        if not any(name for _, name, _, _ in Formatter().parse(template.prompt)):
            return template.prompt + prompt
        return template.prompt.format_map(defaultdict(lambda: prompt))
    if template.kind == "rendered" and tokenizer.chat_template is None:
        return prompt
    text: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True,
        chat_template=pin_date(default_template(tokenizer), template.date),
    )  # fmt: skip
    return text


def chat_prompt(messages: list[dict[str, str]], tokenizer: Any) -> str:
    """A dialogue up to where the model's next turn begins."""
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


def default_template(tokenizer: Any) -> str:
    """The tokenizer's chat template; of several, the default one."""
    template = tokenizer.chat_template
    return str(template["default"] if isinstance(template, dict) else template)


def pin_date(chat_template: str, date: str) -> str:
    """The chat template with `date` where it would print today's: else no two runs are the same."""
    day = datetime.datetime.fromisoformat(date)
    return TODAY.sub(lambda call: repr(day.strftime(call[2])), chat_template)


def encode_prompt(text: str, tokenizer: Any) -> list[int]:
    """Token ids of a rendered text; one BOS at most, where the tokenizer has one to add."""
    opens = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not opens)["input_ids"]
    return ids
