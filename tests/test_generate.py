"""Text from the tuned model, through the same template as in training."""

import io
import json
import subprocess
import sys

import pytest
import torch

from loradag.config.problems import LoradagError
from loradag.evaluation.samples import sample_greedily
from loradag.models.device import compute_dtype
from loradag.models.generator import Sampling, TextGenerator, read_prompts
from loradag.models.loading import load_quantized, load_tuned
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from stages.generate import Generate, generate, read_options
from tests.conftest import ROOT


def test_it_continues_the_prompt_in_the_training_template(trained, capsys) -> None:
    paths, _, _ = trained
    generate(paths, Generate(prompt="Less is", max_new_tokens=5))
    captured = capsys.readouterr()
    tuned = load_tuned(paths, load_quantized(paths, compute_dtype("auto")))
    (expected,) = sample_greedily(tuned, load_tokenizer(paths.base), ["Quote: Less is"], 5, 64)
    assert captured.out == f"Quote: Less is{expected['text']}\n"
    assert "tokens a second" in captured.err


def test_without_the_adapter_it_is_the_quantized_base(trained, capsys) -> None:
    paths, _, _ = trained
    generate(paths, Generate(prompt="Less is", max_new_tokens=5, adapter=False))
    quantized = load_quantized(paths, compute_dtype("auto"))
    (expected,) = sample_greedily(quantized, load_tokenizer(paths.base), ["Quote: Less is"], 5, 64)
    assert capsys.readouterr().out == f"Quote: Less is{expected['text']}\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.txt", "Less is\n\nBe\n"), ("p.jsonl", '{"prompt": "Less is"}\n{"prompt": "Be"}\n')],
)
def test_several_prompts_go_to_a_file(trained, capsys, tmp_path, name, content) -> None:
    paths, _, _ = trained
    (tmp_path / name).write_text(content)
    output = tmp_path / "texts.jsonl"
    options = {"prompts": str(tmp_path / name), "max_new_tokens": 4}
    generate(paths, Generate(output=str(output), **options))
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["Less is", "Be"]
    assert all(1 <= row["tokens"] <= 4 for row in rows)
    capsys.readouterr()
    generate(paths, Generate(**options))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows


def test_text_is_printed_as_it_comes(trained) -> None:
    class Writes(io.StringIO):
        count = 0

        def write(self, text: str) -> int:
            self.count += bool(text)
            return super().write(text)

    paths, _, _ = trained
    sampling = Sampling(max_new_tokens=24, temperature=1.0, top_p=1.0, seed=1)
    generator = TextGenerator(paths, "tuned", torch.float32, sampling)
    output = Writes()
    assert generator.complete("Be", output) == output.getvalue()
    assert output.count > 2
    assert generator.tokens <= 24


def test_help_lists_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages.generate", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(f"  {name}=" in done.stdout for name in Generate.__dataclass_fields__)


def test_a_seed_repeats_a_sample(trained, capsys) -> None:
    paths, _, _ = trained
    for seed in (1, 1, 2):
        generate(paths, Generate(prompt="Be", max_new_tokens=8, temperature=1.0, seed=seed))
    first, again, other = capsys.readouterr().out.rstrip("\n").split("\nQuote:")
    assert first.removeprefix("Quote:") == again
    assert again != other


def test_a_dialogue_ends_with_an_empty_line(trained, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n\n"))
    generate(trained[0], Generate(chat=True, max_new_tokens=3, model="base"))
    captured = capsys.readouterr()
    assert "A dialogue" in captured.err
    assert captured.out.startswith("> ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to continue"),
        (["promp=x"], "Known: prompt"),
        (["hello"], "key=value"),
        (["prompt=x", "max_new_tokens=many"], "max_new_tokens|Integer"),
        (["prompt=x", "prompts=y"], "more than one"),
        (["prompt=x", "output=y"], "output.*prompts"),
        (["prompt=x", "model=base", "adapter=false"], "adapter = false"),
        (["prompt=x", "model=best", "max_new_tokens=0"], r"(?s)model = 'best'.*max_new_tokens = 0"),
        (["prompt=x", "temperature=-1"], r"temperature = -1\.0: must be at least 0"),
        (["prompt=x", "top_p=2"], "top_p = 2"),
        (["prompt=x", "seed=-1"], "seed = -1"),
    ],
)
def test_bad_options_are_one_clear_error(arguments, message) -> None:
    with pytest.raises(LoradagError, match=message):
        read_options(arguments)


def test_before_any_run_it_says_what_to_do(tmp_path) -> None:
    with pytest.raises(LoradagError, match="dvc repro"):
        generate(Paths(tmp_path), Generate(prompt="x"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", None, "no such file"),
        ("p.txt", "\n", "no prompt"),
        ("p.jsonl", '{"prompt": "x"}\n{"text": "x"}\n', "line 2"),
        ("p.jsonl", '\n{"prompt": 3}\n', "line 2"),
        ("p.txt", "caf\xe9", "is not UTF-8"),
    ],
)
def test_a_bad_file_of_prompts_is_one_clear_error(tmp_path, name, content, message) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(LoradagError, match=message):
        read_prompts(tmp_path / name)


def test_prompts_are_taken_as_they_are(tmp_path) -> None:
    assert read_options(["prompt=${HOME} = ???"]).prompt == "${HOME} = ???"
    file = tmp_path / "p.jsonl"
    file.write_text('\ufeff{"prompt": "one\u2028line\x85"}\r\n', encoding="utf-8")
    assert read_prompts(file) == ["one\u2028line\x85"]


def test_an_output_that_cannot_be_written_is_refused_before_any_text(trained, tmp_path) -> None:
    prompts, kept = tmp_path / "p.txt", tmp_path / "folder/kept"
    prompts.write_text("Be")
    kept.parent.mkdir()
    kept.touch()
    for output, message in ((kept.parent, "is a folder"), (kept / "x", "cannot be written")):
        with pytest.raises(LoradagError, match=message):
            generate(trained[0], Generate(prompts=str(prompts), output=str(output)))
    assert kept.exists()
