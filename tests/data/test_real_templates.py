"""Chat templates of published models, as llama.cpp's tests carry them.

The source distribution of llama-cpp-python has them; it is downloaded once a session (77 MB).
"""

import ast
import re
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from loradag.config.problems import LoradagError
from tests.data.test_templates import HEADERS, IM, TURNS, shown

pytestmark = pytest.mark.slow
SOURCE = "llama-cpp-python==0.3.36"
FOLDER = "vendor/llama.cpp/models/templates/"
TESTS = "vendor/llama.cpp/tests/test-chat-template.cpp"
INST = ("[INST]", "[/INST]")


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """By file name, or by the name in the test's table."""
    folder = tmp_path_factory.mktemp("source")
    download = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:",
         "--dest", str(folder), SOURCE],
        capture_output=True, text=True,
    )  # fmt: skip
    if download.returncode:
        pytest.skip(f"{SOURCE} cannot be downloaded: {download.stderr}")
    (archive,) = folder.glob("*.tar.gz")
    found = {}
    with tarfile.open(archive) as files:
        for member in files:
            inside = member.name.partition("/")[2]
            if inside.startswith(FOLDER) and inside.endswith(".jinja"):
                found[Path(inside).stem] = _text(files, member)
            elif inside == TESTS:
                found |= _of_table(_text(files, member))
    return found


def _text(files: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    opened = files.extractfile(member)
    assert opened is not None
    return opened.read().decode()


def _of_table(source: str) -> dict[str, str]:
    """The C++ strings are Python's, too."""
    entries = re.findall(
        r'\.name= \*/ ("[^\n]*"),\n\s*/\* \.template_str= \*/ ("[^\n]*"),\n', source
    )
    return {ast.literal_eval(name): ast.literal_eval(text) for name, text in entries}


EXPECTED = {
    "phi-4": (
        (*IM, "<|im_sep|>"), None, "<|im_end|>",
        "<|im_start|>user<|im_sep|>A<|im_end|><|im_start|>assistant<|im_sep|>«B<|im_end|>»"
        "<|im_start|>user<|im_sep|>C<|im_end|><|im_start|>assistant<|im_sep|>«D<|im_end|>»",
    ),
    "mistralai/Mistral-7B-Instruct-v0.2 (NOTE: Old pre-v1 without a system prompt)": (
        INST, "<s>", "</s>", "<s>[INST] A [/INST]«B</s>»[INST] C [/INST]«D</s>»",
    ),
    "mistralai-Mistral-Nemo-Instruct-2407": (
        INST, "<s>", "</s>", "<s>[INST]A[/INST]«B</s>»[INST]C[/INST]«D</s>»",
    ),
    "microsoft-Phi-3.5-mini-instruct": (
        ("<|user|>", "<|assistant|>", "<|end|>"), None, "<|endoftext|>",
        "<|user|>\nA<|end|>\n<|assistant|>\n«B<|end|>»\n<|user|>\nC<|end|>\n"
        "<|assistant|>\n«D<|end|>»\n«<|endoftext|>»",
    ),
    "google-gemma-2-2b-it": (
        ("<start_of_turn>", "<end_of_turn>"), "<bos>", "<eos>",
        "<bos><start_of_turn>user\nA<end_of_turn>\n<start_of_turn>model\n«B<end_of_turn>»\n"
        "<start_of_turn>user\nC<end_of_turn>\n<start_of_turn>model\n«D<end_of_turn><eos>»",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_rows_of_a_real_template(letters, templates, name: str) -> None:
    special, bos, eos, expected = EXPECTED[name]
    assert shown(letters(templates[name], special, bos, eos), TURNS) == expected


def test_smollm3_thinks_as_its_template_says(letters, templates) -> None:
    text = shown(letters(templates["HuggingFaceTB-SmolLM3-3B"], IM), TURNS)
    assert text.endswith(
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n«B<|im_end|>»\n"
        "<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n«D<|im_end|>»"
    )


def test_every_template_trains_the_answers_alone_or_is_refused(letters, templates) -> None:
    """About ninety of them; the special tokens are those of one tokenizer."""
    answered = [
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "second question"},
        {"role": "assistant", "content": "second answer"},
    ]
    rendered, reasons = [], []
    for name, template in templates.items():
        tokenizer = letters(template, (*IM, *HEADERS, *INST), "<s>", "</s>")
        try:
            text = shown(tokenizer, answered)
        except LoradagError as error:
            reasons.append(str(error))
            continue
        trained = re.findall("«(.*?)»", text, re.DOTALL)
        assert "first answer" in trained[0], name
        assert "second answer" in trained[1], name
        assert "question" not in "".join(trained), name
        rendered.append(name)
    for reason in reasons:
        assert re.search("renders a prompt otherwise than|refuses a dialogue of four", reason)
    assert len(rendered) > 2 * len(reasons) > 0
