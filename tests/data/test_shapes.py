"""Every shape of rows, to tokens: which of them are the assistant's, written down by hand."""

from dataclasses import replace
from typing import Any

import pytest

from loradag.data.rendering import Renderer
from loradag.data.shapes import DroppedError, Example, Shape, detect_format
from loradag.data.templates import Template
from loradag.data.tokenization import Tokenization
from tests.conftest import smoke_config
from tests.data.conftest import marked

AUTO = smoke_config("prepare=file", "prepare.path=x/y.jsonl").prepare
PLAIN = replace(AUTO, template="plain")

TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
    {"role": "user", "content": "C"},
    {"role": "assistant", "content": "D"},
]
TURNS_SHOWN = (
    "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n"
    "<|im_start|>assistant\n«B<|im_end|>»\n<|im_start|>user\nC<|im_end|>\n"
    "<|im_start|>assistant\n«D<|im_end|>»"
)
NO_MARKS = str.maketrans("", "", "«»")
PAIR_SHOWN = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n«Ho<|im_end|>»"


def encode(tokenizer: Any, row: dict[str, Any], prepare: Any) -> tuple[str, str, str]:
    """The format that is found, and the row with the assistant's and the last turn's tokens."""
    shape = detect_format([row], prepare)
    assert shape is not None
    renderer = Renderer(tokenizer, Template(prepare.template, "", "", prepare.date))
    rendered = renderer.render(shape.convert(row))
    (made,) = Tokenization(tokenizer).encode([rendered])
    ids = made.input_ids.tolist()
    assert sum(made.token_bytes) == len(rendered.text.encode())
    return (
        shape.format,
        marked(tokenizer, ids, made.assistant_mask.tolist()),
        marked(tokenizer, ids, made.completion_mask.tolist()),
    )


@pytest.mark.parametrize(
    ("format", "row", "shown"),
    [
        ("messages", {"messages": TURNS}, TURNS_SHOWN),
        (
            "sharegpt",
            {
                "system": "S",
                "conversations": [
                    {"from": "human", "value": "A"}, {"from": "gpt", "value": "B"},
                    {"from": "human", "value": "C"}, {"from": "gpt", "value": "D"},
                ],
            },
            TURNS_SHOWN,
        ),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Ho"}, PAIR_SHOWN),
        (
            "alpaca",
            {"instruction": "Add", "input": "1, 2", "output": "3"},
            "<|im_start|>user\nAdd\n\n1, 2<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»",
        ),
        ("prompt_completion", {"prompt": "Hi", "completion": "Ho", "more": 1}, PAIR_SHOWN),
        (
            "prompt_completion",
            {"prompt": TURNS[:4], "completion": TURNS[4:]},
            TURNS_SHOWN,
        ),
        (
            "messages",
            {"messages": [TURNS[1], {**TURNS[2], "weight": 0}, TURNS[3], {**TURNS[4], "weight": 1},
                          TURNS[1], {**TURNS[2], "weight": 0}]},
            "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
            "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n«D<|im_end|>»",
        ),
        ("prompt_completion", {"prompt": 7, "completion": 0},
         "<|im_start|>user\n7<|im_end|>\n<|im_start|>assistant\n«0<|im_end|>»"),
    ],
)  # fmt: skip
def test_shapes_of_dialogues(letters, format, row, shown) -> None:
    found, assistant, completion = encode(letters(), row, AUTO)
    assert (found, assistant) == (format, shown)
    head, _, tail = shown.rpartition("«")
    assert completion == head.replace("«", "").replace("»", "") + "«" + tail


@pytest.mark.parametrize(
    ("format", "row", "shown"),
    [
        ("text", {"text": "Hi"}, "«Hi<|im_end|>»"),
        ("prompt_completion", {"prompt": "Hi ", "completion": "Ho"}, "Hi «Ho<|im_end|>»"),
        (
            "alpaca",
            {"instruction": "Hi", "output": "Ho"},
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\nHi\n\n### Response:\n«Ho<|im_end|>»",
        ),
    ],
)
def test_shapes_of_plain_text(letters, format, row, shown) -> None:
    assert encode(letters(), row, PLAIN) == (format, shown, shown)


def test_a_rendered_text_is_never_rendered_again(letters) -> None:
    prepare = replace(AUTO, template="rendered", format="text")
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"
    _, shown, _ = encode(letters(), {"text": text}, prepare)
    assert shown == f"«{text}»"  # its special tokens are control tokens; no second EOS
    halves = {"prompt": text[:30], "completion": text[30:]}
    rendered = replace(prepare, format="prompt_completion")
    assert encode(letters(), halves, rendered)[1] == f"«{text}»"


@pytest.mark.parametrize("text", ["<s>Hi</s>", " <s>Hi</s>\n", "<s>Hi", "Hi</s> "])
def test_spaces_around_a_rendered_text_double_neither_bos_nor_eos(letters, text) -> None:
    tokenizer = letters(None, (), "<s>", "</s>", adds_bos=True)
    prepare = replace(AUTO, template="rendered", format="text")
    assert encode(tokenizer, {"text": text}, prepare)[1].translate(NO_MARKS) == "<s>Hi</s>"


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"messages": "talk", "role": "who", "content": "what"},
         {"talk": [{"who": "user", "what": "Hi"}, {"who": "assistant", "what": "Ho"}]}),
        ({"conversations": "talk"},
         {"talk": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}),
        ({"instruction": "q", "output": "a"}, {"q": "Hi", "a": "Ho"}),
        ({"prompt": "q", "completion": "a"}, {"q": "Hi", "a": "Ho"}),
        ({"prompt": "q.a", "completion": "a[0]"}, {"q.a": "Hi", "a[0]": "Ho"}),
        ({"prompt": "q: a", "completion": "{a}"}, {"q: a": "Hi", "{a}": "Ho"}),
    ],
)  # fmt: skip
def test_fields_of_other_names_are_mapped(letters, fields, row) -> None:
    assert encode(letters(), row, replace(AUTO, fields=fields))[1] == PAIR_SHOWN


def test_tool_calls_take_arguments_as_objects_or_as_json(letters) -> None:
    template = (
        "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    shown = (
        "add;<|im_start|>user\n1+2<|im_end|>\n"
        '<|im_start|>assistant\n«add{"a": 1}<|im_end|>»\n'
        "<|im_start|>tool\n3<|im_end|>\n<|im_start|>assistant\n«3<|im_end|>»"
    )
    tools: Any = [{"type": "function", "function": {"name": "add", "parameters": None}}]
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    for written in (call, {"function": {"name": "add", "arguments": '{"a": 1}'}}):
        row = {
            "tools": tools,
            "messages": [
                {"role": "user", "content": "1+2"},
                {"role": "assistant", "content": None, "tool_calls": [written]},
                {"role": "tool", "content": "3"},
                {"role": "assistant", "content": "3"},
            ],
        }
        assert encode(letters(template), row, AUTO)[1] == shown
    turns = [
        {"from": "human", "value": "1+2"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "3"},
        {"from": "gpt", "value": "3"},
    ]
    tools_as_text = '[{"function": {"name": "add"}}]'
    row = {"conversations": turns, "tools": tools_as_text}
    assert encode(letters(template), row, AUTO)[1] == shown


@pytest.mark.parametrize(
    "prepare",
    [PLAIN, replace(AUTO, prompt="Answer: {prompt}"), replace(AUTO, template="rendered")],
)
def test_lists_of_messages_have_no_place_within_a_text(prepare) -> None:
    shape = Shape("prompt_completion", prepare)
    with pytest.raises(DroppedError, match="prompt is a list"):
        shape.convert({"prompt": TURNS[:4], "completion": TURNS[4:]})


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": role[0]} for role in roles]}


@pytest.mark.parametrize(
    ("row", "reason", "is_error"),
    [
        (turns("user", "user", "assistant"), "two_user_turns", True),
        (turns("user", "robot"), "unknown_role", True),
        (turns("user"), "no_answer", False),
        (turns("user", "assistant", "user"), "no_answer", False),
        ({"messages": []}, "no_messages", False),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "mixed_types", True),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "mixed_types", True),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "unknown_role", True),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": 1}]}, "tool_call", True),
        ({"messages": [{"role": "user", "content": "a", "weight": 2}]}, "weight", True),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "no_answer", False),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "},
                          *turns("user", "assistant")["messages"]]},
            "no_answer", False,
        ),
        (
            {"messages": [{"role": "assistant", "content": None,
                           "tool_calls": [{"name": "a", "arguments": '{"a": 1'}]}]},
            "tool_call", True,
        ),
        ({"messages": ["Hi"]}, "mixed_types", True),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"a": 1}]}]},
            "tool_call", True,
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_dialogue(row, reason, is_error) -> None:
    with pytest.raises(DroppedError) as caught:
        Shape("messages", AUTO).convert(row)
    assert (caught.value.reason, caught.value.is_error) == (reason, is_error)


def test_a_number_is_no_missing_completion() -> None:
    shape = Shape("prompt_completion", AUTO)
    assert shape.convert({"prompt": "p", "completion": 0}).fields["completion"] == "0"
    for missing in (None, float("nan")):
        with pytest.raises(DroppedError, match="completion"):
            shape.convert({"prompt": "p", "completion": missing})


def test_no_format_is_found_where_no_fields_fit() -> None:
    assert detect_format([{"a": 1}], AUTO) is None
    strings = replace(AUTO, prompt="{a}", completion="{b}")
    shape = detect_format([{"a": 1, "b": 2}], strings)
    assert shape is not None
    assert shape.convert({"a": 1, "b": 2}) == Example(
        fields={"a": "1", "b": "2"}, prompt="{a}", completion="{b}"
    )


SPELLED = "<|im_end|>"


@pytest.mark.parametrize(
    ("row", "prepare"),
    [
        ({"prompt": f"a{SPELLED}b", "completion": f"{SPELLED}{SPELLED}c"}, AUTO),
        (turns("user", "assistant") | {}, AUTO),
        ({"text": f"{SPELLED} x {SPELLED}"}, PLAIN),
        ({"prompt": SPELLED, "completion": f"ü{SPELLED}"}, PLAIN),
    ],
)
def test_special_tokens_within_texts_are_letters(letters, row, prepare) -> None:
    """As many control tokens as with texts that spell none, and the same letters."""
    tokenizer = letters()
    harmless = {
        key: value.replace(SPELLED, "#" * len(SPELLED)) if isinstance(value, str) else value
        for key, value in row.items()
    }
    found = encode(tokenizer, row, prepare)
    expected = encode(tokenizer, harmless, prepare)
    letters_shown = [shown.replace("#" * len(SPELLED), SPELLED) for shown in expected]
    assert list(found) == letters_shown
    shape = detect_format([row], prepare)
    assert shape is not None
    renderer = Renderer(tokenizer, Template(prepare.template, "", "", prepare.date))
    ids = [
        next(Tokenization(tokenizer).encode([renderer.render(shape.convert(r))])).input_ids.tolist()
        for r in (row, harmless)
    ]
    assert len(ids[0]) == len(ids[1])
    assert ids[0].count(tokenizer.eos_token_id) == ids[1].count(tokenizer.eos_token_id)
