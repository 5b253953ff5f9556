from loradag.compat.chat_templates import render, render_with_spans, training_template

MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}"
    "{% endgeneration %};{% endfor %}"
)


def test_spans_are_the_characters_between_the_marks() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text, spans = render_with_spans(MARKED, messages, None, bos_token="<s>")
    assert text == "<s>user:Hi;assistant:Ho;"
    assert [text[begin:end] for begin, end in spans] == ["Hi", "Ho"]


def test_a_dialogue_is_rendered_as_its_tokenizer_renders_it(tiny_base) -> None:
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tiny_base)
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    for opened in (False, True):
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opened
        )
        variables = tokenizer.special_tokens_map
        template = str(tokenizer.chat_template)
        got = render(template, messages, None, add_generation_prompt=opened, **variables)
        assert got == expected


def test_of_an_unknown_family_trl_has_no_template(tiny_base) -> None:
    from loradag.models.tokenizer import load_tokenizer

    assert training_template(load_tokenizer(tiny_base)) is None
