"""Text from the tuned model, through the same template as in training."""

import io

import pytest
import torch

from loradag.config.problems import LoradagError
from loradag.evaluation.samples import sample_greedily
from loradag.models.loading import load_quantized, load_tuned
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from stages.generate import Generate, generate, read_options


def test_it_goes_on_from_the_prompt_in_the_training_template(trained, capsys) -> None:
    paths, _, _ = trained
    generate(paths, Generate(prompt="Less is", max_new_tokens=5))
    said = capsys.readouterr().out.rstrip("\n")
    tuned = load_tuned(paths, load_quantized(paths, torch.float32))
    (expected,) = sample_greedily(tuned, load_tokenizer(paths.base), ["Quote: Less is"], 5)
    assert said == f"Quote: Less is{expected['text']}"


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
    ("arguments", "says"),
    [
        ([], "nothing to go on from"),
        (["promp=x"], "Known: prompt"),
        (["hello"], "key=value"),
        (["prompt=x", "max_new_tokens=many"], "max_new_tokens|Integer"),
    ],
)
def test_bad_options_are_one_clear_error(arguments, says) -> None:
    with pytest.raises(LoradagError, match=says):
        read_options(arguments)


def test_before_any_run_it_says_what_to_do(tmp_path) -> None:
    with pytest.raises(LoradagError, match="dvc repro"):
        generate(Paths(tmp_path), Generate(prompt="x"))
    with pytest.raises(LoradagError, match="choose tuned"):
        generate(Paths(tmp_path), Generate(prompt="x", model="best"))
