"""The shapes that rows come in, converted to one: a dialogue, or fields for two format strings.

| format | fields |
|---|---|
| messages | `messages`: `role` and `content` a turn, as OpenAI and ChatML; optional `tools` |
| sharegpt | `conversations`: `from` and `value` a turn; optional `tools` |
| alpaca | `instruction`, optional `input`, `output` |
| prompt_completion | `prompt` and `completion`: texts, or lists of messages |
| text | `text` |
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from loradag.config.prepare import Prepare
from loradag.config.rules import field_names
from loradag.data.sources import Fields

ROLES = ("system", "developer", "user", "assistant", "tool")
SHAREGPT_ROLES = {
    "human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool",
    **{role: role for role in ROLES},
}  # fmt: skip
MESSAGE_ROLES = {role: role for role in ROLES} | {"function": "tool"}  # OpenAI's, before tools
REASONING = ("reasoning_content", "thinking")
# The prompts of Stanford Alpaca, https://github.com/tatsu-lab/stanford_alpaca.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


class DroppedError(Exception):
    """A row that is not kept: why, as a key of the report and in words.

    Attributes:
        reason: key under which the report counts it.
        is_error: whether the row is broken, and not merely incomplete or filtered out.
    """

    def __init__(self, reason: str, message: str = "", *, is_error: bool = False) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.is_error = is_error


@dataclass(frozen=True)
class Example:
    """A row, ready to be rendered: `messages` (and `tools`), or `fields` of two format strings."""

    messages: list[Fields] | None = None
    tools: list[Fields] | None = None
    fields: dict[str, str] = field(default_factory=dict)
    prompt: str = ""
    completion: str = ""

    @cached_property
    def serialized(self) -> str:
        """All of it as JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _json(values)

    @cached_property
    def texts(self) -> list[str]:
        """All texts of the row, in order."""
        if self.messages is None:
            return list(self.fields.values())
        return [_text_of(message) for message in self.messages]

    @property
    def opening(self) -> list[str]:
        """What it answers: the turns before the first of the assistant, or the prompt's fields."""
        if self.messages is None:
            named = field_names(self.prompt) or field_names(self.completion)
            return [self.fields[name] for name in named]
        turns = [message["role"] for message in self.messages].index("assistant")
        return self.texts[:turns]


class Shape:
    """Converts the rows of one format.

    Attributes:
        format: its name.
        required: the fields that a row must have.
        prompt, completion: format strings; empty for dialogues.
    """

    def __init__(self, format: str, prepare: Prepare) -> None:
        self.format = format
        self.names = {name: name for name in _NAMES[format]} | (prepare.fields or {})
        self.is_chat = prepare.template == "chat"
        self.prompt, self.completion = _format_strings(format, prepare)
        self.required = [self.names[name] for name in _REQUIRED[format]]
        self.columns: dict[str, str] = {}  # of the format strings' fields
        if format in ("prompt_completion", "text"):
            given = field_names(f"{prepare.prompt or ''}{prepare.completion or ''}")
            for name in field_names(self.prompt + self.completion):
                self.columns[name] = name if name in given else self.names[name]
            self.required = list(self.columns.values())
        # A list of messages has no place within other text.
        self.takes_turns = self.is_chat and {self.prompt, self.completion} == {
            f"{{{name}}}" for name in self.columns
        }
        self.convert = {"messages": self._messages, "sharegpt": self._sharegpt,
                        "alpaca": self._alpaca}.get(format, self._fields)  # fmt: skip

    @property
    def is_dialogue(self) -> bool:
        return self.format in ("messages", "sharegpt")

    def fits(self, row: Fields) -> bool:
        """Whether the row has the fields of this format, in its form."""
        if not all(name in row for name in self.required):
            return False
        if not self.is_dialogue:
            return True
        turns = _parsed(row[self.required[0]])
        role = self.names["from" if self.format == "sharegpt" else "role"]
        return isinstance(turns, list) and all(isinstance(t, dict) and role in t for t in turns)

    def _messages(self, row: Fields) -> Example:
        role, content = self.names["role"], self.names["content"]
        messages = []
        for turn in self._turns(row, self.names["messages"]):
            message: Fields = {
                "role": _role(turn.get(role), MESSAGE_ROLES),
                "content": _content(turn.get(content), "a turn's content"),
                **_weight(turn),
            }
            for name in (*REASONING, "name", "tool_call_id"):
                if turn.get(name) is not None:
                    message[name] = _content(turn[name], name)
            legacy = [turn["function_call"]] if turn.get("function_call") else None
            if calls := _parsed(turn.get("tool_calls")) or legacy:
                if not isinstance(calls, list):
                    raise DroppedError("tool_call", "tool_calls is no list", is_error=True)
                message["tool_calls"] = [_tool_call(call) for call in calls]
            messages.append(message)
        return _dialogue(messages, self._tools(row))

    def _sharegpt(self, row: Fields) -> Example:
        role, value = self.names["from"], self.names["value"]
        messages: list[Fields] = []
        system = row.get("system")
        if isinstance(system, str) and system.strip():
            messages.append({"role": "system", "content": system})
        for turn in self._turns(row, self.names["conversations"]):
            content = _content(turn.get(value), "a turn's value")
            message: Fields = {
                "role": _role(turn.get(role), SHAREGPT_ROLES),
                "content": content,
                **_weight(turn),
            }
            if turn.get(role) == "function_call":
                message |= {"content": "", "tool_calls": [_tool_call(_parsed(content))]}
            messages.append(message)
        return _dialogue(messages, self._tools(row))

    def _alpaca(self, row: Fields) -> Example:
        texts = {name: self._text(row, self.names[name]) for name in ("instruction", "output")}
        given = _content(row.get(self.names["input"]), self.names["input"])
        if given.strip():
            texts = {"instruction": texts["instruction"], "input": given, "output": texts["output"]}
        if self.is_chat:
            prompt = "{instruction}\n\n{input}" if given.strip() else "{instruction}"
        else:
            prompt = ALPACA_WITH_INPUT if given.strip() else ALPACA
        return Example(fields=texts, prompt=prompt, completion="{output}")

    def _fields(self, row: Fields) -> Example:
        values = [row.get(column) for column in self.required]
        if self.takes_turns and any(isinstance(value, list) for value in values):
            turns = [turn for value in values for turn in self._as_turns(value)]
            return self._messages({**row, self.names["messages"]: turns})
        fields = {name: self._text(row, column) for name, column in self.columns.items()}
        return Example(fields=fields, prompt=self.prompt, completion=self.completion)

    def _as_turns(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise DroppedError(
                "mixed_types", "a text where the row's other field has messages", is_error=True
            )
        return value

    def _text(self, row: Fields, name: str) -> str:
        text = _content(row.get(name), name)
        if not text.strip():
            raise DroppedError(f"no_{name}", f"nothing in the field {name!r}")
        return text

    def _turns(self, row: Fields, name: str) -> list[Fields]:
        turns = _parsed(row.get(name))
        if turns is None or turns == []:
            raise DroppedError(f"no_{name}", f"nothing in the field {name!r}")
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DroppedError("mixed_types", f"{name!r} is no list of turns", is_error=True)
        return turns

    def _tools(self, row: Fields) -> list[Fields] | None:
        given = row.get(self.names["tools"])
        tools = _parsed(given)
        if not tools:
            return None
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise DroppedError("mixed_types", "tools is no list of JSON schemas", is_error=True)
        return tools if isinstance(given, str) else _without_nulls(tools)


_NAMES = {
    "messages": ("messages", "role", "content", "tools"),
    "sharegpt": ("conversations", "from", "value", "tools"),
    "alpaca": ("instruction", "input", "output"),
    "prompt_completion": ("prompt", "completion", "messages", "role", "content", "tools"),
    "text": ("text",),
}
_REQUIRED = {
    "messages": ("messages",), "sharegpt": ("conversations",), "alpaca": ("instruction", "output"),
    "prompt_completion": (), "text": (),
}  # fmt: skip


def _format_strings(format: str, prepare: Prepare) -> tuple[str, str]:
    if format == "prompt_completion":
        prompt = "{prompt}" if prepare.prompt is None else prepare.prompt
        return prompt, "{completion}" if prepare.completion is None else prepare.completion
    if format == "text":
        return "", "{text}" if prepare.completion is None else prepare.completion
    if format == "alpaca":
        return ("{instruction}" if prepare.template == "chat" else ALPACA), "{output}"
    return "", ""


def detect_format(rows: list[Fields], prepare: Prepare) -> Shape | None:
    """The shape of the first format that one of `rows` fits; None: no format does."""
    if prepare.format != "auto":
        return Shape(prepare.format, prepare)
    if prepare.prompt is not None or prepare.completion is not None:
        return Shape("prompt_completion", prepare)
    for format in _NAMES:
        shape = Shape(format, prepare)
        if any(shape.fits(row) for row in rows):
            return shape
    return None


def _dialogue(messages: list[Fields], tools: list[Fields] | None) -> Example:
    """A dialogue, verified: turns alternate, and the last one is the assistant's.

    What follows the last answer that is trained on is left out, where `weight` is 0.
    """
    while messages and messages[-1]["role"] == "assistant" and messages[-1].get("weight") == 0:
        messages = messages[:-1]
        while messages and messages[-1]["role"] != "assistant":
            messages = messages[:-1]
    roles = [message["role"] for message in messages]
    for before, after in pairwise(roles):
        if before == after and after in ("user", "assistant", "system"):
            raise DroppedError(f"two_{after}_turns", f"two {after} turns in a row", is_error=True)
    if roles[-1:] != ["assistant"]:
        raise DroppedError("no_answer", "the last turn is no answer of the assistant's")
    for message in messages:
        is_empty = not message["content"].strip() and not message.get("tool_calls")
        if message["role"] == "assistant" and is_empty:
            raise DroppedError("no_answer", "a turn of the assistant's is empty")
    return Example(messages=messages, tools=tools)


def _role(role: Any, known: dict[str, str]) -> str:
    if not isinstance(role, str) or role not in known:
        raise DroppedError(
            "unknown_role", f"the role {role!r} is none of {', '.join(known)}", is_error=True
        )
    return known[role]


def _weight(turn: Fields) -> Fields:
    """OpenAI's key: 0 for a turn of the assistant that is not trained on."""
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise DroppedError("weight", f"a turn's weight is {weight!r}, not 0 or 1", is_error=True)
    return {"weight": 0} if weight == 0 else {}


def _content(value: Any, name: str) -> str:
    """A text: numbers as they print, the text parts of OpenAI's content lists joined."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return str(value) if value == value else ""  # NaN is what pandas writes for nothing
    if isinstance(value, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in value
    ):
        return "".join(part["text"] for part in value)
    message = f"{name} is a {type(value).__name__}, no text"
    if isinstance(value, list):
        parts = [part for part in value if isinstance(part, dict) and part.get("type") != "text"]
        found = sorted({str(part.get("type") or " and ".join(part)) for part in parts})
        message = (
            f"{name} is a list with parts that are no text: {', '.join(found) or 'no objects'}"
        )
    raise DroppedError("mixed_types", message, is_error=True)


def _tool_call(call: Any) -> Fields:
    """A call as chat templates take it: the arguments as an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DroppedError("tool_call", "a tool call without a function's name", is_error=True)
    given = function.get("arguments")
    arguments = _parsed(given) or {}
    if not isinstance(arguments, dict):
        raise DroppedError("tool_call", "a call's arguments are no JSON object", is_error=True)
    if not isinstance(given, str):
        arguments = _without_nulls(arguments)
    made = {"name": function["name"], "arguments": arguments}
    identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return identity | {"type": "function", "function": made}


def _parsed(value: Any) -> Any:
    """The value of a JSON text; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _without_nulls(value: Any) -> Any:
    """Arrow gives every row the fields of all rows, as nulls."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _json(value: Any, sort_keys: bool = False) -> str:
    try:
        return json.dumps(value, sort_keys=sort_keys, ensure_ascii=False)
    except TypeError as error:  # a date, for example, in the arguments of a call
        raise DroppedError("mixed_types", f"no JSON: {error}", is_error=True) from error


def _text_of(message: Fields) -> str:
    calls = message.get("tool_calls")
    extra = "\n" + _json(calls, sort_keys=True) if calls else ""
    return f"{message['content']}{extra}"
