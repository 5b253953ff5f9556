from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loradag.data.content import content_id, normalize
from loradag.data.selection import check_length, identify, sample, split_of
from loradag.data.shapes import DroppedError, Example
from tests.conftest import smoke_config

PREPARE = replace(smoke_config().prepare, unique=None)
PAIR = Example(fields={"a": "Who?", "b": "Me."}, prompt="{a}", completion="{b}")


def test_ids_are_of_the_content_up_to_case_punctuation_and_spacing() -> None:
    assert content_id(["Ünder  score"]) == content_id([" ünder, SCORE! "])
    assert content_id(["ﬁ"]) == content_id(["fi"])
    assert content_id(["a", "b"]) != content_id(["ab", ""])
    assert content_id(["की"]) != content_id(["का"])  # vowel signs are no punctuation
    assert content_id(["❤\ufe0f you"]) == content_id(["❤ you"])


def test_a_row_keeps_its_split_whatever_other_rows_there_are() -> None:
    ids = [content_id([f"row {n}"]) for n in range(2000)]
    prepare = replace(PREPARE, eval_fraction=0.1, calibration_fraction=0.05)
    splits = Counter(split_of(id, prepare) for id in ids)
    # Binomial: 5 standard deviations around 200 and 100.
    assert abs(splits["eval"] - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert abs(splits["calibration"] - 100) < 5 * (2000 * 0.05 * 0.95) ** 0.5
    wider = replace(prepare, eval_fraction=0.2)
    assert all(split_of(id, wider) == "eval" for id in ids if split_of(id, prepare) == "eval")
    own = replace(prepare, eval_path="mine.jsonl")
    assert "eval" not in {split_of(id, own) for id in ids}


def test_two_answers_to_a_question_are_two_rows_on_one_side() -> None:
    other = replace(PAIR, fields={"a": "Who?", "b": "You."})
    first, second = (identify({}, example, PREPARE) for example in (PAIR, other))
    assert first.id != second.id
    assert first.opening == second.opening
    by_question = replace(PREPARE, unique=["a"])
    rows = {"a": "Who?", "b": "Me."}, {"a": "who", "b": "You."}
    assert identify(rows[0], PAIR, by_question) == identify(rows[1], other, by_question)


@pytest.mark.parametrize(
    "answers", [("C", "C++", "C#"), ("-1", "1"), ("की", "का"), ("👍", "👎"), ("a\n b", "a\nb")]
)
def test_texts_that_differ_in_their_signs_are_different_rows(answers: tuple[str, ...]) -> None:
    examples = (replace(PAIR, fields={"a": "Who?", "b": answer}) for answer in answers)
    assert len({identify({}, example, PREPARE).id for example in examples}) == len(answers)


def test_dialogues_that_differ_in_their_tools_are_different_rows() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    found = [identify({}, Example(turns, tools), PREPARE) for tools in (None, [{"name": "add"}])]
    assert found[0].id != found[1].id
    assert found[0].content == found[1].content


def test_lengths_are_of_the_texts_alone() -> None:
    check_length(PAIR, replace(PREPARE, min_characters=7, max_characters=7))
    with pytest.raises(DroppedError, match="too_short"):
        check_length(PAIR, replace(PREPARE, min_characters=8))
    with pytest.raises(DroppedError, match="too_long"):
        check_length(PAIR, replace(PREPARE, min_characters=0, max_characters=6))


IDS = np.array([int(content_id([f"row {n}"]), 16) for n in range(1000)], np.uint64)


def test_a_sample_of_rows_does_not_favor_a_split() -> None:
    keep = sample(IDS, np.zeros(1000, int), [None], 300)
    assert keep.sum() == 300
    prepare = replace(PREPARE, eval_fraction=0.2, calibration_fraction=0.2)
    splits = Counter(split_of(f"{id:016x}", prepare) for id in IDS[keep].tolist())
    assert abs(splits["calibration"] - 60) < 5 * (300 * 0.2 * 0.8) ** 0.5
    smaller = sample(IDS, np.zeros(1000, int), [None], 200)
    assert not (smaller & ~keep).any()


@pytest.mark.parametrize(("max_rows", "counts"), [(None, (600, 200)), (400, (300, 100))])
def test_a_mix_has_its_sources_in_proportion(max_rows, counts) -> None:
    sources = np.array([0] * 600 + [1] * 400)
    keep = sample(IDS, sources, [3.0, 1.0], max_rows)
    assert (keep[:600].sum(), keep[600:].sum()) == counts


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_normalized_as_other_texts_are(text) -> None:
    assert normalize(text) == normalize(f"{text} é").removesuffix("é").strip()
