"""What transformers and trl know of chat templates, beyond `apply_chat_template`."""

from typing import Any


def render_with_spans(
    template: str, messages: list[Any], tools: list[Any] | None, **variables: Any
) -> tuple[str, list[tuple[int, int]]]:
    """A dialogue's text, and the ranges of characters within the template's generation marks.

    `apply_chat_template` finds the same ranges, but returns them as a mask over tokens that it has
    made itself, where here the text is tokenized later and in another way. transformers 5.23;
    unnecessary once `apply_chat_template(tokenize=False)` returns the ranges.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, spans = render_jinja_template(
        [messages], tools=tools, chat_template=template, return_assistant_tokens_mask=True,
        **variables,
    )  # fmt: skip
    return texts[0], spans[0]


def render(template: str, messages: list[Any], tools: list[Any] | None, **variables: Any) -> str:
    """A dialogue's text.

    `apply_chat_template(tokenize=False)` without the tokenizer, which need not go to other
    processes. transformers 5.23; unnecessary once a tokenizer is no more than its backend.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template(
        [messages], tools=tools, chat_template=template, **variables
    )  # fmt: skip
    return str(texts[0])


def training_template(tokenizer: Any) -> str | None:
    """trl's template with generation marks for the tokenizer's own; None: trl knows none.

    trl recognises some thirty model families by the text of their template.
    """
    from jinja2 import TemplateError
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer) or str(tokenizer.chat_template)
    except (ValueError, TypeError, TemplateError):  # it also renders a dialogue of its own
        return None
