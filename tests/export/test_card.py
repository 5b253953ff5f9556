"""Model cards: what they state is so, and nothing of the machine that wrote them."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from loradag.export.card import Origin, write_card
from loradag.export.measurement import without_added_bos
from loradag.models.tokenizer import load_tokenizer
from tests.architectures import save_family
from tests.conftest import smoke_config

FOUND = {
    "rounds_activations": None, "tokens": 100, "perplexity": 2.0, "merged_perplexity": 2.0,
    "mean_kl_to_merged": 0.0, "greedy_match": 1.0, "runtime": "xllamacpp",
}  # fmt: skip
LOCAL = {"id": None, "source": "local", "path": "/home/me/model", "revision": "ab12",
         "license": None}  # fmt: skip


def card(
    path: Path,
    *overrides: str,
    kind: str = "gguf",
    prompt: str = "Quote: ",
    base: Any = LOCAL,
    **found: Any,
) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    config = smoke_config("quantize=none", *overrides)
    origin = Origin(base, config.prepare, config.quantize, config.adapter, config.train)
    numbers = {"gguf_f16": FOUND | found}
    write_card(
        path, kind, origin, numbers, file="m.gguf", prompt=prompt,
        quantization={"load_in_8bit": True},
    )  # fmt: skip
    _, front, text = path.read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_rows_of_ones_own_are_named_without_their_path(tmp_path: Path) -> None:
    front, text = card(
        tmp_path / "README.md", "prepare=mix",
        "prepare.mix=[{path: /home/me/a.jsonl, weight: 2}, {id: org/rows, split: train}, "
        "{path: /home/me/b.jsonl, name: letters}]",
    )  # fmt: skip
    assert front["datasets"] == ["org/rows"]
    assert "base_model" not in front
    assert "local rows (weight 2), org/rows (weight 1), letters (weight 1), in the chat" in text
    assert "None" not in text
    assert "/home" not in text
    assert ".jsonl" not in text


def test_the_base_and_the_data_of_a_hub_are_linked_with_their_licences(tmp_path: Path) -> None:
    base = {"id": "org/base", "source": "hub", "revision": "12", "license": "apache-2.0"}
    front, text = card(
        tmp_path / "README.md", "prepare=hub", "prepare.id=org/rows", "prepare.license=cc-by-4.0",
        base=base, kind="adapter",
    )  # fmt: skip
    assert (front["base_model"], front["license"]) == ("org/base", "apache-2.0")
    assert front["datasets"] == ["org/rows"]
    assert "org/base, revision 12. Licence: apache-2.0." in text
    assert "Licence: cc-by-4.0." in text
    load = 'AutoPeftModelForCausalLM.from_pretrained(".", quantization_config=quantization)'
    assert f"quantization = BitsAndBytesConfig(load_in_8bit=True)\nmodel = {load}\n" in text


def test_an_adapters_base_that_is_on_no_hub_is_named_by_the_reader(tmp_path: Path) -> None:
    _, text = card(tmp_path / "README.md", kind="adapter")
    code = text.partition("```python\n")[2].partition("```")[0]
    compile(code, "card", "exec")
    assert 'from_pretrained("BASE", quantization_config=quantization)\nmodel = Peft' in code
    assert "AutoPeft" not in code


@pytest.mark.parametrize(
    ("overrides", "stated"),
    [
        (["train.max_steps=5", "train.batch_size=2", "train.gradient_accumulation=3"],
         "5 steps of 6 rows"),
        (["train.early_stopping.patience=2", "train.keep=best", "train.eval_steps=4"],
         "at most .*held-out loss"),
        (["train.packing=true", "train.packing_tokens=128"], "rows packed to 128 tokens"),
        (["train=qat"], r"rounded to \d bits in training\."),
    ],
    ids=["steps", "best", "packed", "qat"],
)  # fmt: skip
def test_the_method_is_stated_as_it_was(tmp_path: Path, overrides: list[str], stated: str) -> None:
    import re

    assert re.search(stated, card(tmp_path / "README.md", *overrides)[1])


def test_the_prompt_is_an_argument_of_the_shell(tmp_path: Path) -> None:
    prompt = "It's $HOME \\ `x`:\n"
    _, text = card(tmp_path / "README.md", prompt=prompt)
    (command,) = [line for line in text.splitlines() if line.startswith("llama-completion")]
    given = shlex.split(command)[4]
    assert given.encode().decode("unicode_escape") == prompt  # as llama.cpp reads it


def test_the_prompt_has_no_bos_that_runtimes_add(tmp_path: Path) -> None:
    save_family("Llama 3", tmp_path / "model")
    tokenizer = load_tokenizer(tmp_path / "model")
    text = f"{tokenizer.bos_token}Hello"
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2
    assert without_added_bos(text, tokenizer) == "Hello"


def test_what_llama_cpp_gives_the_template_is_stated(tmp_path: Path) -> None:
    _, text = card(tmp_path / "README.md", template_variables=["enable_thinking"])
    assert "gives the chat template `enable_thinking` by itself" in text
    assert "chat_template_kwargs" not in card(tmp_path / "README.md")[1]
