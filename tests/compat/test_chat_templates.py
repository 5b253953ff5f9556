from loradag.compat.chat_templates import render_with_spans, training_template

MARKED = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}"
    "{% endgeneration %};{% endfor %}"
)


def test_spans_are_the_characters_between_the_marks() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    text, spans = render_with_spans(MARKED, messages, None, bos_token="<s>")
    assert text == "<s>user:Hi;assistant:Ho;"
    assert [text[begin:end] for begin, end in spans] == ["Hi", "Ho"]


def test_of_an_unknown_family_trl_has_no_template(tiny_base) -> None:
    from loradag.models.tokenizer import load_tokenizer

    assert training_template(load_tokenizer(tiny_base)) is None
