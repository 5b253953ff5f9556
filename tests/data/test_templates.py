"""The chat templates of model families, as trl carries them, and what they train on."""

import importlib.resources
from dataclasses import replace
from typing import Any

import pytest

from loradag.config.problems import LoradagError
from loradag.data.rendering import Renderer, trainable_template
from loradag.data.shapes import DroppedError, Shape
from loradag.data.templates import Template, chat_prompt, pin_date, render_prompt
from loradag.data.tokenization import Tokenization
from tests.conftest import smoke_config
from tests.data.conftest import CHATML, marked

PREPARE = smoke_config("prepare=file", "prepare.path=x/y.jsonl").prepare
TURNS = [
    {"role": "user", "content": "A"},
    {"role": "assistant", "content": "B"},
    {"role": "user", "content": "C"},
    {"role": "assistant", "content": "D"},
]
# Of Mistral's instruct models: the prompt is in brackets, EOS ends an answer.
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
    "[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
# Of Phi 4: no line breaks, and a user's turn opens the answer, with or without a generation prompt.
PHI4 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% else %}"
    "<|im_start|>{{ m.role }}<|im_sep|>{{ m.content }}<|im_end|>{% endif %}"
    "{% if m.role == 'user' %}<|im_start|>assistant<|im_sep|>{% endif %}{% endfor %}"
)
# Of SmolLM3: the generation marks are around the header too, which depends on the mode.
SMOLLM3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
    "{% if quiet %}<think>\n\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if quiet %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
# Its prompt is another text than the start of the dialogue that continues it.
NO_PREFIX = (
    "{{ messages | length }} turns:{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
DATED = "Today is {{ strftime_now('%d %B %Y') }}.\n" + CHATML


def template_of(name: str) -> str:
    file = importlib.resources.files("trl") / f"chat_templates/{name}.jinja"
    return file.read_text(encoding="utf-8")


def shown(tokenizer: Any, turns: list[dict[str, Any]], date: str = "2025-01-01") -> str:
    renderer = Renderer(tokenizer, Template("chat", "", "", date))
    rendered = renderer.render(Shape("messages", PREPARE).convert({"messages": turns}))
    (made,) = Tokenization(tokenizer).encode([rendered])
    return marked(tokenizer, made.input_ids.tolist(), made.assistant_mask.tolist())


IM = ("<|im_start|>", "<|im_end|>")
HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")
PHI = ("<|user|>", "<|assistant|>", "<|end|>")
DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>")
GPT_OSS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>")
FAMILIES = {
    "qwen2_5": (
        IM, None, "<|im_end|>",
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
        "<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n«B<|im_end|>»\n"
        "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n«D<|im_end|>»",
    ),
    "qwen3": (
        IM, None, "<|im_end|>",
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\n"
        "B<|im_end|>»\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n"
        "«<think>\n\n</think>\n\nD<|im_end|>»",
    ),
    "llama3": (
        HEADERS, "<|begin_of_text|>", "<|eot_id|>",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nA<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«B<|eot_id|>»"
        "<|start_header_id|>user<|end_header_id|>\n\nC<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n«D<|eot_id|>»",
    ),
    "gemma": (
        GEMMA, "<bos>", "<eos>",
        "<bos><start_of_turn>user\nA<end_of_turn>\n<start_of_turn>model\n«B<end_of_turn>»\n"
        "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n«D<end_of_turn><eos>»",
    ),
    "gemma3": (
        GEMMA, "<bos>", "<eos>",
        "<bos><start_of_turn>user\nA<end_of_turn>\n<start_of_turn>model\n«B<end_of_turn>»\n"
        "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n«D<end_of_turn><eos>»",
    ),
    "deepseek_r1_distill": (
        DEEPSEEK, "<s>", "<｜end▁of▁sentence｜>",
        "<s><｜User｜>A<｜Assistant｜>«B<｜end▁of▁sentence｜>»"
        "<｜User｜>C<｜Assistant｜>«D<｜end▁of▁sentence｜>»",
    ),
    "gptoss": (
        GPT_OSS, None, "<|return|>",
        "<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.\n"
        "Knowledge cutoff: 2024-06\nCurrent date: 2025-01-01\n\nReasoning: medium\n\n# Valid "
        "channels: analysis, commentary, final. Channel must be included for every message.<|end|>"
        "<|start|>user<|message|>A<|end|><|start|>assistant«<|channel|>final<|message|>B<|end|>»"
        "<|start|>user<|message|>C<|end|><|start|>assistant«<|channel|>final<|message|>D<|return|>»",
    ),
    "phi3": (
        PHI, None, "<|endoftext|>",
        "<|user|>\nA<|end|>\n<|assistant|>\n«B<|end|>»\n<|user|>\nC<|end|>\n"
        "<|assistant|>\n«D<|end|>»\n«<|endoftext|>»",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_families(letters, name) -> None:
    special, bos, eos, expected = FAMILIES[name]
    assert shown(letters(template_of(name), special, bos, eos), TURNS) == expected


def test_mistral(letters) -> None:
    tokenizer = letters(MISTRAL, (), "<s>", "</s>", adds_bos=True)
    assert shown(tokenizer, TURNS) == "<s>[INST] A [/INST]« B</s>»[INST] C [/INST]« D</s>»"


@pytest.mark.parametrize(("quiet", "thought"), [("false", ""), ("true", "<think>\n\n</think>\n")])
def test_marks_around_the_header_do_not_train_it(letters, quiet: str, thought: str) -> None:
    tokenizer = letters("{% set quiet = " + quiet + " %}" + SMOLLM3, IM)
    opening = f"<|im_start|>assistant\n{thought}"
    assert shown(tokenizer, TURNS) == (
        f"<|im_start|>user\nA<|im_end|>\n{opening}«B<|im_end|>»\n"
        f"<|im_start|>user\nC<|im_end|>\n{opening}«D<|im_end|>»"
    )


def test_phi4(letters) -> None:
    tokenizer = letters(PHI4, (*IM, "<|im_sep|>"))
    assert shown(tokenizer, TURNS) == (
        "<|im_start|>user<|im_sep|>A<|im_end|><|im_start|>assistant<|im_sep|>«B<|im_end|>»"
        "<|im_start|>user<|im_sep|>C<|im_end|><|im_start|>assistant<|im_sep|>«D<|im_end|>»"
    )


def test_smollm2(letters) -> None:
    assert shown(letters(CHATML), TURNS) == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n«B<|im_end|>»\n"
        "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n«D<|im_end|>»"
    )


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "gptoss", "deepseek_r1_distill"])
def test_a_turn_of_weight_0_is_not_trained(letters, name) -> None:
    special, bos, eos, expected = FAMILIES[name]
    tokenizer = letters(template_of(name), special, bos, eos)
    quiet = [TURNS[0], {**TURNS[1], "weight": 0}, *TURNS[2:]]
    head, trained, tail = expected.replace("»", "«", 1).split("«", 2)
    assert shown(tokenizer, quiet) == head + trained + tail
    with pytest.raises(DroppedError, match="no answer"):
        shown(tokenizer, quiet[:2])


CALL = {"role": "assistant", "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "add", "description": "D", "parameters": {}}}]


@pytest.mark.parametrize(
    ("name", "row", "lost"),
    [
        ("llama3", {"messages": [TURNS[0], CALL]}, "the call of add"),
        ("lfm2", {"messages": [TURNS[0], CALL], "tools": TOOLS}, "the call of add"),
        ("llama3", {"messages": TURNS, "tools": TOOLS}, "the tool add"),
        (
            "phi3",
            {"messages": [TURNS[0], TURNS[1], {"role": "tool", "content": "Sum."}, TURNS[1]]},
            "a turn of the role tool",
        ),
        ("smolvlm", {"messages": TURNS}, "a turn of the role assistant"),
    ],
)
def test_what_a_template_leaves_out_is_noticed(letters, name, row, lost) -> None:
    renderer = Renderer(letters(template_of(name), IM, "<s>", "</s>"), Template("chat", "", ""))
    with pytest.raises(DroppedError, match=f"does not print {lost}") as caught:
        renderer.render(Shape("messages", PREPARE).convert(row))
    assert caught.value.is_error


def test_a_template_that_opens_with_the_user_refuses_an_answer_first(letters) -> None:
    tokenizer = letters(template_of("qwen2_5"), IM)
    with pytest.raises(DroppedError, match="begins with an answer"):
        shown(tokenizer, TURNS[1:])
    assert shown(letters(), TURNS[1:]).startswith("<|im_start|>assistant\n«B<|im_end|>»")


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "gemma", "gemma3"])
def test_marks_and_prefixes_find_the_same_tokens(letters, name) -> None:
    special, bos, eos, expected = FAMILIES[name]
    tokenizer = letters(template_of(f"{name}_training"), special, bos, eos)
    assert trainable_template(tokenizer, "2025-01-01")[1].__name__ == "_marked"
    assert shown(tokenizer, TURNS) == expected


def test_a_template_that_cannot_do_without_tools_is_refused_with_the_reason(letters) -> None:
    """`tools` is defined for transformers, as None, where a dialogue has none."""
    needing = "{% if tools is defined %}{% for tool in tools %}{% endfor %}{% endif %}" + CHATML
    with pytest.raises(LoradagError, match=r"refuses a dialogue of four turns .*not iterable"):
        shown(letters(needing), TURNS)


def test_a_template_whose_prompt_is_no_prefix_is_refused_with_the_reason(letters) -> None:
    with pytest.raises(LoradagError, match="renders a prompt otherwise than the dialogue"):
        Renderer(letters(NO_PREFIX), Template("chat", "", ""))


def test_a_tokenizer_without_chat_template_is_refused(letters) -> None:
    with pytest.raises(LoradagError, match="no chat template"):
        Renderer(letters(None), Template("chat", "", ""))


def test_a_dialogue_that_the_template_refuses_is_named(letters) -> None:
    special, bos, eos, _ = FAMILIES["gemma"]
    tokenizer = letters(template_of("gemma"), special, bos, eos)
    with pytest.raises(DroppedError, match="refuses"):
        shown(tokenizer, [{"role": "system", "content": "S"}, *TURNS])


def test_today_is_the_date_of_the_config(letters) -> None:
    tokenizer = letters(DATED)
    assert shown(tokenizer, TURNS[:2], "2024-07-26").startswith("Today is 26 July 2024.\n")
    template = Template("chat", "", "", "2024-07-26")
    assert render_prompt(template, "A", tokenizer).startswith("Today is 26 July 2024.\n")
    assert "2024" not in chat_prompt(TURNS[:1], tokenizer)  # as a runtime would render it


@pytest.mark.parametrize("name", ["llama3_2", "llama3_1"])
def test_dates_of_real_templates_are_pinned(letters, name) -> None:
    pinned = pin_date(template_of(name), "2024-07-26")
    assert "strftime_now(" not in pinned
    tokenizer = letters(template_of(name), HEADERS, "<|begin_of_text|>", "<|eot_id|>")
    text = shown(tokenizer, TURNS)
    assert "Today Date: 01 Jan 2025" in text or "Today Date: 26 Jul 2024" in text


def test_generation_uses_the_training_template(letters) -> None:
    tokenizer = letters()
    plain = Template("plain", "Quote: {quote}", "\nAuthor: {author}")
    assert render_prompt(plain, "Be", tokenizer) == "Quote: Be"
    assert render_prompt(Template("plain", "", "{text}"), "Be", tokenizer) == "Be"
    opening = "<|im_start|>user\nBe<|im_end|>\n<|im_start|>assistant\n"
    assert render_prompt(Template("chat", "{a}", "{b}"), "Be", tokenizer) == opening
    rendered = Template("rendered", "", "{text}")
    assert render_prompt(rendered, "Be", tokenizer) == opening
    assert render_prompt(rendered, "Be", letters(None)) == "Be"


def test_bos_is_there_once_whoever_adds_it(letters) -> None:
    row = replace(PREPARE, template="plain")
    for prompt, adds_bos in (("Hi", True), ("<s>Hi", True), ("<s>Hi", False)):
        tokenizer = letters(None, (), "<s>", "</s>", adds_bos)
        example = Shape("prompt_completion", replace(row, prompt=prompt, completion="{a}"))
        renderer = Renderer(tokenizer, Template("plain", "", ""))
        rendered = renderer.render(example.convert({"a": "b"}))
        (made,) = Tokenization(tokenizer).encode([rendered])
        text = marked(tokenizer, made.input_ids.tolist(), made.completion_mask.tolist())
        assert text == "<s>Hi«b</s>»"
