"""Chat templates as llama.cpp's server renders them: which differences are known, and reported."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from loradag.export.export_verification import Verification
from loradag.export.formats import write_gguf
from loradag.runtime import Paths
from tests.conftest import smoke_config
from tests.data.test_real_templates import templates  # noqa: F401

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] + '\\n' + m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
)
THINKING = TURNS + (
    "{% if enable_thinking is defined %}{% if enable_thinking %}<think>\n{% else %}<think>\n\n"
    "</think>\n\n{% endif %}{% endif %}{% endif %}"
)
OPENED = TURNS + "{% endif %}"
REFUSES_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{% set messages = messages[1:] %}{% endif %}"


def verify(project: Paths, root: Path, template: str) -> tuple[Any, list[str], int]:
    """Numbers and problems of a GGUF of the merged model with `template`; dialogues compared."""
    paths = Paths(root / "project")
    shutil.copytree(project.root, paths.root)
    (paths.merged / "chat_template.jinja").write_text(template)
    options = smoke_config("quantize=none", "export.rows=1", "export.max_new_tokens=1").export
    (root / "scratch").mkdir()
    verification = Verification(paths, options, ["gguf_f32"], root / "scratch")
    file = root / "model.gguf"
    write_gguf(paths.merged, file, "f32", "tiny")
    numbers, problems = verification.verify("gguf_f32", file)
    return numbers, problems, len(verification.inputs.dialogues)


@pytest.mark.parametrize(
    ("template", "variables", "dialogues"),
    [
        (OPENED, None, 3),
        # llama.cpp's server says whether a model is to think.
        (THINKING, ["enable_thinking"], 3),
        (REFUSES_SYSTEM + OPENED, None, 2),
        # The server puts a system text that the template drops into the user's turn.
        (NO_SYSTEM + OPENED, None, 2),
    ],
    ids=["turns", "thinking", "refuses system", "drops system"],
)
def test_what_the_server_adds_by_itself_is_reported(
    exportable: Paths, tmp_path: Path, template: str, variables: list[str] | None, dialogues: int
) -> None:
    numbers, problems, compared = verify(exportable, tmp_path, template)
    assert problems == []
    assert numbers.get("template_variables") == variables
    assert compared == dialogues
    assert numbers["tokens_per_second"] == 0  # one token a text is none decoded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variables"),
    [
        ("meta-llama-Llama-3.1-8B-Instruct", ["date_string"]),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", ["enable_thinking"]),
        ("Qwen-QwQ-32B", ["enable_thinking"]),
        ("Qwen-Qwen3-0.6B", None),
        ("HuggingFaceTB-SmolLM3-3B", None),
        ("mistralai-Mistral-Nemo-Instruct-2407", None),
        ("google-gemma-2-2b-it", None),
        ("Phi-3-mini", None),
        ("phi-4", None),
        ("CohereForAI-c4ai-command-r-plus-tool_use", None),
    ],
)
def test_real_templates_are_rendered_as_in_transformers(
    exportable: Paths,
    templates: Mapping[str, str],  # noqa: F811
    tmp_path: Path,
    name: str,
    variables: list[str] | None,
) -> None:
    numbers, problems, _ = verify(exportable, tmp_path, templates[name])
    assert problems == []
    assert numbers.get("template_variables") == variables
