"""From an example to text, with the ranges of characters that the assistant has written."""

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from loradag.compat.chat_templates import render, render_with_spans, training_template
from loradag.config.problems import LoradagError
from loradag.data.shapes import DroppedError, Example
from loradag.data.templates import Template, default_template, pin_date
from loradag.data.tokenization import Rendered, Span, special_tokens

# Stand-ins for special tokens within texts while a template is rendered: of Unicode's plane for
# private use, one for each token found.
STAND_IN = 0xF0000
# What a chat template is tried on.
DIALOGUE: list[Any] = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
WORDS = re.compile(r"\w+")
STAND_INS = re.compile("[\U000f0000-\U000ffffd]")


# Text and spans of the assistant, of a template, messages, tools and the template's variables.
Find = Callable[[str, list[Any], Any, dict[str, Any]], tuple[str, list[Span]]]


class Renderer:
    """Renders examples as `template` and a tokenizer have it.

    Raises:
        LoradagError: the tokenizer has no chat template, or one that cannot be trained on.
    """

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.template = template
        self.variables = dict(tokenizer.special_tokens_map)
        special = special_tokens(tokenizer)
        self.special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))
        self.chat_template: str | None = None
        self.find: Find = _prefixed
        if template.kind == "chat":
            self.chat_template, self.find = trainable_template(tokenizer, template.date)

    def render(self, example: Example) -> Rendered:
        """The text of an example, its special tokens those of the template alone.

        Raises:
            DroppedError: the chat template refuses the dialogue.
        """
        if self.template.kind == "rendered":
            text = self._without_space_outside(
                (example.prompt + example.completion).format(**example.fields)
            )
            return Rendered(text, [(0, len(text))], [])
        found: list[str] = []
        if example.messages is not None:
            messages = _hide(example.messages, self.special, found)
            tools = _hide(example.tools, self.special, found)
            rendered = self._render_dialogue(messages, tools)
        else:
            fields = {
                name: _hide(text, self.special, found) for name, text in example.fields.items()
            }
            prompt = example.prompt.format(**fields)
            completion = example.completion.format(**fields)
            if self.template.kind == "chat":
                turns = [("user", prompt), ("assistant", completion)]
                messages = [{"role": role, "content": content} for role, content in turns]
                rendered = self._render_dialogue(messages[not prompt :], None)
            else:
                text = prompt + completion
                rendered = Rendered(text, [(len(prompt), len(text))], [])
        return _reveal(rendered, found) if found else rendered

    def _without_space_outside(self, text: str) -> str:
        """The text without spaces before BOS and after EOS, which would hide that it has them."""
        bos, eos = (self.variables.get(f"{name}_token") for name in ("bos", "eos"))
        if bos and text.lstrip().startswith(bos):
            text = text.lstrip()
        return text.rstrip() if eos and text.rstrip().endswith(eos) else text

    def _render_dialogue(self, messages: list[Any], tools: list[Any] | None) -> Rendered:
        from jinja2 import TemplateError

        assert self.chat_template is not None
        try:
            text, spans = self.find(self.chat_template, messages, tools, self.variables)
        except (TemplateError, TypeError) as error:
            raise DroppedError(
                "template", f"the chat template refuses it: {error}", is_error=True
            ) from error
        if lost := _not_printed(messages, tools, text, spans):
            message = f"the chat template does not print {lost}"
            raise DroppedError("template", message, is_error=True)
        spans = _trained(spans, messages)
        spans = [(begin, begin + len(text[begin:end].rstrip("\n"))) for begin, end in spans]
        spans = [span for span in spans if span[0] < span[1]]
        if not spans:
            raise DroppedError("no_answer", "the chat template prints nothing of the assistant's")
        end = spans[-1][1]
        return Rendered(text[:end] + text[end:].rstrip("\n"), spans, [])


def trainable_template(tokenizer: Any, date: str) -> tuple[str, Find]:
    """A chat template whose assistant turns can be found, and the function that finds them.

    The tokenizer's own, where it has generation marks, or where each prompt is a prefix of the
    dialogue that continues it; otherwise trl's training template for the same model family. Marks
    around a turn's header, which every prompt ends with, are not used where prefixes can be.
    Elsewhere the header is taken off (DeepSeek).

    Raises:
        LoradagError: there is none.
    """
    if tokenizer.chat_template is None:
        raise LoradagError(
            "prepare.template = 'chat': the tokenizer has no chat template. Set "
            "prepare.template=plain with prepare.prompt and prepare.completion, or take a chat "
            "model."
        )
    own, variables = default_template(tokenizer), dict(tokenizer.special_tokens_map)
    pinned = pin_date(own, date)
    broken = _prefix_problem(pinned, variables)
    if re.search(r"\{%-?\s*generation\s*-?%\}", own):
        marks_headers = _marks_headers(pinned, variables)
        if broken is None and marks_headers:
            return pinned, _prefixed
        return pinned, _marked_without_headers if marks_headers else _marked
    if broken is None:
        return pinned, _prefixed
    if known := training_template(tokenizer):
        known = pin_date(known, date)
        marks_headers = _marks_headers(known, variables)
        return known, _marked_without_headers if marks_headers else _marked
    raise LoradagError(
        f"prepare.template = 'chat': the model's chat template {broken}, so the turns to train on "
        "cannot be found in it, and trl has no training template for it. Take another model, put "
        "{% generation %} marks into its template, or set prepare.template=plain."
    )


def _prefix_problem(template: str, variables: dict[str, Any]) -> str | None:
    from jinja2 import TemplateError

    try:
        _prefixed(template, DIALOGUE, None, variables)
    except DroppedError as problem:
        return str(problem)
    except (TemplateError, TypeError) as error:
        return f"refuses a dialogue of four turns ({error})"
    return None


def _marks_headers(template: str, variables: dict[str, Any]) -> bool:
    """Whether the generation marks include what a prompt ends with, as SmolLM3's do."""
    from jinja2 import TemplateError

    try:
        marked, answers = (
            find(template, DIALOGUE, None, variables)[1]
            for find in (_marked, _marked_without_headers)
        )
    except (TemplateError, TypeError):  # which each row will be told
        return False
    return marked != answers


def _marked(
    template: str, messages: list[Any], tools: Any, variables: dict[str, Any]
) -> tuple[str, list[Span]]:
    """The spans of the template's generation marks, without the line break of the prompt."""
    text, spans = render_with_spans(template, messages, tools, **variables)
    starts = [end - len(text[begin:end].lstrip("\n")) for begin, end in spans]
    return text, [(start, end) for start, (_, end) in zip(starts, spans, strict=True)]


def _marked_without_headers(
    template: str, messages: list[Any], tools: Any, variables: dict[str, Any]
) -> tuple[str, list[Span]]:
    """The spans of the template's generation marks, each from where the prompt for it ends."""
    text, spans = _marked(template, messages, tools, variables)
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if len(turns) > len(spans):
        return text, spans
    found = []
    for at, (begin, end) in zip_longest(turns, spans):
        if at is not None:
            prompt = _prompt(template, messages[:at], tools, variables)
            pairs = enumerate(zip(prompt, text, strict=False))
            same = next((place for place, (a, b) in pairs if a != b), len(prompt))
            begin = max(begin, min(end, same))
        found.append((begin, end))
    return text, found


def _prefixed(
    template: str, messages: list[Any], tools: Any, variables: dict[str, Any]
) -> tuple[str, list[Span]]:
    """The spans of the assistant, from its prompts and from what each adds to them."""

    def through(count: int) -> str:
        return render(template, messages[:count], tools, add_generation_prompt=False, **variables)

    text, spans = through(len(messages)), []
    for at, message in enumerate(messages):
        if message["role"] == "assistant":
            opening = _prompt(template, messages[:at], tools, variables)
            turn = text if at + 1 == len(messages) else through(at + 1)
            if not (text.startswith(turn) and turn.startswith(opening)):
                raise DroppedError(
                    "template", "renders a prompt otherwise than the dialogue that continues it",
                    is_error=True,
                )  # fmt: skip
            spans.append((len(opening), len(turn)))
    return text, spans


def _prompt(template: str, messages: list[Any], tools: Any, variables: dict[str, Any]) -> str:
    from jinja2 import TemplateError

    try:
        return render(template, messages, tools, add_generation_prompt=True, **variables)
    except (TemplateError, TypeError) as error:
        if messages:
            raise
        message = "it begins with an answer, which the chat template has no prompt for"
        raise DroppedError("template", message, is_error=True) from error


def _not_printed(
    messages: list[Any], tools: list[Any] | None, text: str, spans: list[Span]
) -> str | None:
    """What of a dialogue is not in its text: a template leaves out what it does not know."""
    answers = "\n".join(text[begin:end] for begin, end in spans)
    for message in messages:
        for call in message.get("tool_calls", []):
            if call["function"]["name"] not in answers:
                return f"the call of {call['function']['name']}"
        # A template may trim or quote a text, or leave out the reasoning before an answer.
        words = WORDS.findall(message["content"].rpartition("</think>")[2][:200])
        if words and max(words, key=len) not in text:
            return f"a turn of the role {message['role']}"
    for tool in tools or []:
        name = tool.get("function", tool).get("name")
        if isinstance(name, str) and name not in text:
            return f"the tool {name}"
    return None


def _trained(spans: list[Span], messages: list[Any]) -> list[Span]:
    """Without the turns of the assistant that have the weight 0."""
    weights = [m.get("weight") for m in messages if m["role"] == "assistant"]
    if 0 not in weights:
        return spans
    if len(weights) != len(spans):
        raise DroppedError(
            "weight", "the chat template does not mark each turn, so none can be left out",
            is_error=True,
        )  # fmt: skip
    return [span for span, weight in zip(spans, weights, strict=True) if weight != 0]


def _hide(value: Any, special: re.Pattern[str], found: list[str]) -> Any:
    """`value` with a stand-in for each special token in its texts, as long as the token."""

    def hide(match: re.Match[str]) -> str:
        found.append(match[0])
        return chr(STAND_IN + len(found) - 1) * len(match[0])

    if isinstance(value, str):
        return special.sub(hide, value) if special.pattern and special.search(value) else value
    if isinstance(value, list):
        return [_hide(item, special, found) for item in value]
    if isinstance(value, dict):
        return {_hide(key, special, found): _hide(v, special, found) for key, v in value.items()}
    return value


def _reveal(rendered: Rendered, found: list[str]) -> Rendered:
    """The special tokens themselves again, and where they are."""
    literals: list[Span] = []
    pieces: list[str] = []
    at = 0
    while match := STAND_INS.search(rendered.text, at):
        number = ord(match[0]) - STAND_IN
        token = found[number] if number < len(found) else ""
        begin, end = match.start(), match.start() + len(token)
        if not token or rendered.text[begin:end] != match[0] * len(token):
            raise DroppedError(
                "special_token", "a special token within a text is lost in the template",
                is_error=True,
            )  # fmt: skip
        pieces += [rendered.text[at:begin], token]
        literals.append((begin, end))
        at = end
    return replace(rendered, text="".join([*pieces, rendered.text[at:]]), literals=literals)
