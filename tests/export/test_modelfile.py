"""The Modelfile's template against what the tokenizer itself renders."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trl

from loradag.data.templates import Template
from loradag.data.token_contract import Contract
from loradag.export.modelfile import read_turns, write_modelfile
from loradag.models.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
)
COUNTS = "{% for m in messages %}{{ loop.index }}{{ m['role'] }}{{ m['content'] }}{% endfor %}"


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return load_tokenizer(tiny_base)


def test_reads_chatml(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    turns = read_turns(tokenizer)
    assert turns is not None
    assert turns.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert turns.default == ""
    assert turns.opening == "<|im_start|>assistant\n"
    assert turns.go().count("{{ .Content }}") == 3
    assert turns.go().count("{{ end }}") == 2  # of the role and of the range
    assert '{{ if eq .Role "system" }}' in turns.go()


def test_reads_a_default_system_turn(tokenizer: Any) -> None:
    tokenizer.chat_template = DEFAULT + CHATML
    turns = read_turns(tokenizer)
    assert turns is not None
    assert turns.default == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert turns.go().startswith('{{ if ne (index .Messages 0).Role "system" }}')


def test_a_template_that_is_no_sequence_of_turns_is_left_to_the_file(tokenizer: Any) -> None:
    tokenizer.chat_template = COUNTS
    assert read_turns(tokenizer) is None


LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% else %}{% set loop_messages = messages %}{% set system = '' %}{% endif %}"
    "{% for m in loop_messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "(system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
    "{{ m['content'] + eos_token }}{% else %}{{ raise_exception('no system') }}{% endif %}"
    "{% endfor %}"
)
OLMO2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + m['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
GRANITE = (
    "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] "
    "+ '<|end_of_text|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
PHI4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
STABLELM = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
# By family: the template, as trl carries it (a file's name) or in the form its makers publish, and
# whether it is a sequence of turns.
TEMPLATES = {
    "Llama 2": (LLAMA2, False),  # a system text inside the first user turn
    "Llama 3": ("llama3.jinja", True),
    "Llama 3.1": ("llama3_1.jinja", True),
    "Mistral": (MISTRAL, True),
    "Qwen 2.5": ("qwen2_5.jinja", True),
    "Qwen 3": ("qwen3.jinja", False),  # thoughts, in the last answer alone
    "Gemma": ("gemma.jinja", True),
    "Gemma 3": ("gemma3.jinja", False),  # a system text inside the first user turn
    "Phi 3": ("phi3.jinja", False),  # EOS after whatever turn is the last
    "Phi 4": (PHI4, True),
    "OLMo 2": (OLMO2, False),  # no line break after the last answer
    "Granite": (GRANITE, True),
    "StableLM": (STABLELM, True),
    "SmolLM2": (DEFAULT + CHATML, True),
}


def render_go(template: str, roles: list[str]) -> str:
    """What Go's text/template makes of `template`, of whose actions only those used are known."""
    tokens = re.split(r"(\{\{.*?\}\})", template)

    def run(at: int, active: bool, role: str) -> tuple[str, int]:
        """Up to the end, else or end of a block: its text, and where that stands."""
        text = ""
        while at < len(tokens):
            action = tokens[at].removeprefix("{{").removesuffix("}}").strip()
            if not tokens[at].startswith("{{"):
                text, at = text + (tokens[at] if active else ""), at + 1
            elif action == ".Content":
                text, at = text + (role if active else ""), at + 1
            elif action == "range .Messages":
                turns = [f"{one}-{number}" for number, one in enumerate(roles)]
                parts = [run(at + 1, active, turn) for turn in turns]
                text, at = text + "".join(part for part, _ in parts), parts[0][1] + 1
            elif action.startswith("if "):
                done = False
                while action != "end":
                    holds = active and not done and evaluate(action, role)
                    part, at = run(at + 1, holds, role)
                    text, done = text + part, done or holds
                    action = tokens[at].removeprefix("{{").removesuffix("}}").strip()
                at += 1
            else:
                assert action == "end" or action.startswith("else"), action
                return text, at
        return text, at

    def evaluate(action: str, role: str) -> bool:
        equal = re.fullmatch(r'(?:else )?if eq \.Role "(\w+)"', action)
        if equal:
            return role.split("-")[0] == equal[1]
        assert action == 'if ne (index .Messages 0).Role "system"', action
        return roles[0] != "system"

    return run(0, True, "")[0]


@pytest.mark.parametrize("family", TEMPLATES)
def test_ollama_renders_what_the_chat_template_renders(tokenizer: Any, family: str) -> None:
    template, is_sequence = TEMPLATES[family]
    if template.endswith(".jinja"):
        template = (Path(trl.__file__).parent / "chat_templates" / template).read_text()
    tokenizer.chat_template = template
    turns = read_turns(tokenizer)
    assert (turns is not None) == is_sequence
    for roles in dialogues(turns):
        assert turns
        assert render_go(turns.go(), roles) == expected(tokenizer, roles)


def dialogues(turns: Any) -> list[list[str]]:
    """Roles of each turn."""
    if turns is None:
        return []
    without = [["user"], ["user", "assistant", "user"], ["user", "assistant"] * 2 + ["user"]]
    with_system = [["system", "user"], ["system", "user", "assistant", "user"]]
    return without + (with_system if "system" in turns.around else [])


def expected(tokenizer: Any, roles: list[str]) -> str:
    messages = [{"role": one, "content": f"{one}-{at}"} for at, one in enumerate(roles)]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


@pytest.fixture(scope="session")
def go(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package go_template is, whose library has Go's own text/template."""
    folder = tmp_path_factory.mktemp("go")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder)]
    installed = subprocess.run([*pip, "go_template==0.0.3"], capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"go_template cannot be installed: {installed.stderr}")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family, (_, is_one) in TEMPLATES.items() if is_one])
def test_go_renders_what_the_chat_template_renders(
    tokenizer: Any, go: Path, tmp_path: Path, family: str
) -> None:
    """Through Go's text/template, which is what Ollama renders with."""
    template, _ = TEMPLATES[family]
    if template.endswith(".jinja"):
        template = (Path(trl.__file__).parent / "chat_templates" / template).read_text()
    tokenizer.chat_template = template
    turns = read_turns(tokenizer)
    assert turns
    for roles in dialogues(turns):
        values = [{"Role": one, "Content": f"{one}-{at}"} for at, one in enumerate(roles)]
        rendered = render_in_go(go, tmp_path, turns.go(), {"Messages": values})
        assert rendered == expected(tokenizer, roles)


def render_in_go(go: Path, folder: Path, template: str, values: dict[str, Any]) -> str:
    (folder / "template").write_text(template)
    (folder / "values").write_text(json.dumps(values))
    code = "from go_template import render_template as r; r('template', 'values', 'rendered')"
    subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(go)}, check=True
    )
    return (folder / "rendered").read_text()


def test_quotes_of_a_prompt_do_not_end_the_template(tokenizer: Any, tmp_path: Path) -> None:
    contract = Contract(None, 2, 0, Template("plain", '"""{code}""" {{', ""), [], [])
    write_modelfile(tmp_path / "Modelfile", ["m.gguf"], tokenizer, contract)
    quotes = r'{{ "\"\"\"" }}'
    template = f'{quotes}{{{{ .Prompt }}}}{quotes} {{{{ "{{" }}}}'
    assert f'TEMPLATE """{template}"""\n' in (tmp_path / "Modelfile").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("Quote: ", "Quote: Hi"),
        ('Explain:\n"""{code}"""\n', 'Explain:\n"""Hi"""\n'),
        ('{{{{"a": {{{x}}}, "b": {{}}}}}}', '{{"a": {Hi}, "b": {}}}'),
    ],
)
def test_braces_and_quotes_of_a_prompt_are_text(
    tokenizer: Any, go: Path, tmp_path: Path, prompt: str, text: str
) -> None:
    contract = Contract(None, 2, 0, Template("plain", prompt, ""), [], [])
    write_modelfile(tmp_path / "Modelfile", ["m.gguf"], tokenizer, contract)
    # Ollama ends the text at the first three quotes before white space.
    found = re.search(r'^TEMPLATE """(.*?)"""\s', (tmp_path / "Modelfile").read_text(), re.S | re.M)
    assert found
    assert render_in_go(go, tmp_path, found[1], {"Prompt": "Hi"}) == text
