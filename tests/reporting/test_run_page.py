import re
from html.parser import HTMLParser
from typing import Any

import pytest

from loradag.reporting.results import models, note
from loradag.reporting.run_figures import loss_figure
from loradag.reporting.run_page import report_page
from loradag.reporting.terminal import print_summary
from loradag.tracking.flattening import flat_params
from tests.reporting.example import params, reports

CURVES = {step: {"loss": 4 - step / 60} for step in range(1, 61)}
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Reader(HTMLParser):
    """Reads the page as a browser would have to: balanced tags, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.loaded += [(k, v) for k, v in attributes if k in ("src", "href", "srcset", "data")]
        self.loaded += [("tag", tag)] if tag in ("script", "link", "iframe", "img") else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def page(
    given: dict[str, Any], whole: dict[str, dict[str, Any]], changed: frozenset[str] = frozenset()
) -> str:
    return report_page(
        "a run", given, flat_params(given), set(changed), whole, CURVES,
        {stage: stage == "train" for stage in whole}, {"mlflow.source.git.commit": "c" * 40},
    )  # fmt: skip


def test_the_page_is_well_formed_and_loads_nothing() -> None:
    html = page(params(), reports())
    assert Reader(html).loaded == []
    assert "url(" not in html
    assert "@import" not in html


def test_the_page_says_what_the_reports_say() -> None:
    said = Reader(page(params(), reports())).text
    for number in ("38.10", "40.70", "19.80", "−48.0 %", "1.78 %", "269 MB", "111 MB", "8,496"):
        assert number in said
    for text in (
        "0.0121",
        f"≤ {params()['merge']['tolerance']['kl']:g}",
        "87.5 %",
        "gguf q8_0",
        "145 MB",
        "19.66",
        "xllamacpp",
        "20.40 dB",
    ):
        assert text in said
    assert "Author: Albert Einstein" in said
    assert said.count("from the cache") == len(reports()) - 1 + 1  # six stages, and the caption
    assert "c" * 12 in said


def test_forgetting_and_task_scores_are_shown_where_evaluate_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = Reader(page(params(), reports())).text
    assert "Forgetting" not in plain
    assert "Outside the tuning data" not in plain
    measured = reports()
    names = ("base", "quantized", "adapter")
    general = {
        name: {"perplexity": 40.0 + 5 * i, "nll": 3.7, "tokens": 9} for i, name in enumerate(names)
    }
    scores = {name: {"local": {"acc": 0.25 + i / 16}} for i, name in enumerate(names)}
    measured["evaluate"] |= {"general": general, "tasks": scores}
    text = Reader(page(params(), measured)).text
    for shown in ("Forgetting", "+25.0 %", "40.00 → 50.00", "local: acc", "0.3125", "+0.125"):
        assert shown in text
    print_summary("a run", params(), measured, dict.fromkeys(measured, True), "page", "here")
    assert "perplexity 40.00 → 45.00 → 50.00  +25.0 %" in capsys.readouterr().out
    assert "General text: +25.0 %" in note(measured)


@pytest.mark.parametrize(
    ("loss", "marked"),
    [
        ("completion", ["&lt;b&gt;", "&lt;/s&gt;"]),
        ("assistant", ["&lt;/s&gt;"]),
        ("full", ["&lt;s&gt;", "Hi", "↵\n", "&lt;b&gt;", "&lt;/s&gt;"]),
    ],
)
def test_example_rows_mark_the_tokens_of_the_loss(loss: str, marked: list[str]) -> None:
    tokens = ["<s>", "Hi", "\n", "<b>", "</s>"]
    rows = [{"tokens": tokens, "completion": [0, 0, 0, 1, 1], "assistant": [0, 0, 0, 0, 1]}]
    given = params(f"train.loss={loss}")
    html = report_page(
        "a run", given, flat_params(given), set(), reports(), CURVES,
        dict.fromkeys(reports(), True), {}, rows,
    )  # fmt: skip
    assert re.findall(r'<span class="trained">(.*?)</span>', html, re.DOTALL) == marked
    assert "Rows as the model reads them" not in page(params(), reports())


@pytest.mark.parametrize(
    ("loss", "counted"),
    [("completion", "the completion's"), ("assistant", "the assistant's"), ("full", "all tokens")],
)
def test_the_tokens_of_the_perplexity_are_named(loss: str, counted: str) -> None:
    text = Reader(page(params(f"evaluate.loss={loss}"), reports())).text
    (caption,) = (line for line in text.splitlines() if line.startswith("Perplexity is exp"))
    assert counted in caption


def test_the_held_out_loss_during_training_is_drawn() -> None:
    figure = loss_figure({1: {"loss": 3.0}, 2: {"loss": 2.5, "eval_loss": 2.75}}, None)
    assert figure is not None
    assert "step 2: 2.75 held out" in figure.picture
    assert "Orange" in figure.caption


@pytest.mark.parametrize(("rows", "part"), [("8", ", over 8 of 206 rows."), ("1000", ".")])
def test_the_held_out_loss_of_some_rows_is_not_taken_for_that_of_all(rows: str, part: str) -> None:
    given = params(f"train.eval_rows={rows}")
    curves = {1: {"loss": 3.0}, 2: {"loss": 2.5, "eval_loss": 2.75}}
    html = report_page(
        "a run", given, flat_params(given), set(), reports(), curves,
        dict.fromkeys(reports(), True), {},
    )  # fmt: skip
    assert f"Orange: held-out loss during the training{part}" in Reader(html).text


def test_what_a_model_says_is_text_and_no_markup() -> None:
    whole = reports()
    whole["evaluate"]["samples"][0]["adapter"] = "<script>alert(1)</script>"
    html = page(params(), whole)
    assert "<script>" not in html
    assert "<script>alert(1)</script>" in Reader(html).text


def test_params_that_differ_from_the_committed_are_marked() -> None:
    assert 'class="changed"' not in page(params(), reports())
    html = page(params("adapter.r=4", "seed=3"), reports(), frozenset({"adapter.r", "seed"}))
    assert html.count('class="changed"') == 2


def test_a_run_without_quantisation_says_so() -> None:
    whole = reports()
    whole["quantize"] |= {"scheme": "none", "layers": [], "histogram": None}
    said = Reader(page(params("quantize=none"), whole)).text
    assert "quantize=none" in said
    assert [model.name for model in models(whole)] == ["base", "adapter"]


def test_a_layer_that_lost_nothing_has_no_error_to_show() -> None:
    whole = reports()
    whole["quantize"]["layers"][0]["sqnr_db"] = None
    whole["quantize"]["histogram"] = None
    Reader(page(params(), whole))


@pytest.mark.parametrize("stage", list(reports()))
def test_a_stage_that_did_not_run_is_named(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    without = {name: report for name, report in reports().items() if name != stage}
    text = Reader(page(params(), without)).text
    assert re.search(rf"{stage}\s*not run", text)
    assert text.count("not run") == 1
    ran = dict.fromkeys(without, True)
    print_summary("a run", params(), without, ran, "report.html", "here")
    assert re.search(rf"Not run\s+{stage}\s", capsys.readouterr().out)


def test_a_run_that_ends_after_evaluate_has_a_page() -> None:
    short = {name: report for name, report in reports().items() if name not in ("merge", "export")}
    text = Reader(page(params(), short)).text
    assert "mean KL" not in text
    assert "sweep.until=export" in text
    assert text.count("not run") == 2


def test_the_terminal_says_what_the_reports_say(capsys: pytest.CaptureFixture[str]) -> None:
    ran = dict.fromkeys(reports(), False) | {"train": True}
    print_summary("a [run]", params(), reports(), ran, "report.html", "http://127.0.0.1:5000/#/x")
    said = capsys.readouterr().out
    for text in (
        "a [run]", "8,496 held-out tokens", "19.80  −48.0 %", "1.78 %", "269 MB → 111 MB",
        "passed, into the original base", "0.0121", "gguf q8_0, 145 MB", "57 tokens/s",
        "dvc exp run --no-hydra -S adapter.r=16", 'python -m stages.generate prompt="…"', "make ui",
        "http://127.0.0.1:5000/#/x",
    ):  # fmt: skip
        assert text in said
    assert max(map(len, said.splitlines())) <= 80
    values = ("report.html", "http://127")
    starts = {line.index(value) for line in said.splitlines() for value in values if value in line}
    assert len(starts) == 1, "one column"
