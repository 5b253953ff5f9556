from collections import Counter
from dataclasses import replace

import pytest

from loradag.config.problems import LoradagError
from loradag.data.rows import Row, read_rows, write_rows
from loradag.data.selection import content_id, select, split_of
from loradag.data.templates import Template
from tests.conftest import smoke_config

TEMPLATE = Template("plain", "{a}", "{b}")
PREPARE = replace(
    smoke_config().prepare, unique=["a"], min_characters=3, max_characters=12, max_rows=None
)


def test_the_reasons_of_dropped_rows_are_counted() -> None:
    dropped: Counter[str] = Counter()
    rows = [
        {"a": "one", "b": "two"},
        {"a": " ONE! ", "b": "else"},  # the same up to case, punctuation and spacing
        {"a": "one", "b": ""},
        {"a": "one"},
        {"a": "o", "b": "k"},
        {"a": "x" * 12, "b": "y"},
    ]
    kept = select(rows, PREPARE, TEMPLATE, dropped)
    assert list(kept.values()) == [rows[0]]
    assert +dropped == {"duplicate": 1, "no_b": 2, "too_short": 1, "too_long": 1}


def test_a_row_keeps_its_split_whatever_other_rows_there_are() -> None:
    ids = [content_id([f"row {n}"]) for n in range(2000)]
    prepare = replace(PREPARE, eval_fraction=0.1, calibration_fraction=0.05)
    splits = Counter(split_of(id, prepare) for id in ids)
    # Binomial: 5 standard deviations around 200 and 100.
    assert abs(splits["eval"] - 200) < 5 * (2000 * 0.1 * 0.9) ** 0.5
    assert abs(splits["calibration"] - 100) < 5 * (2000 * 0.05 * 0.95) ** 0.5
    wider = replace(prepare, eval_fraction=0.2)
    assert all(split_of(id, wider) == "eval" for id in ids if split_of(id, prepare) == "eval")


def test_a_sample_of_rows_does_not_lean_to_one_split() -> None:
    rows = [{"a": f"row {n}", "b": "yes"} for n in range(1000)]
    prepare = replace(PREPARE, max_rows=300, eval_fraction=0.2, calibration_fraction=0.2)
    dropped: Counter[str] = Counter()
    kept = select(rows, prepare, TEMPLATE, dropped)
    assert len(kept) == 300
    assert dropped["over_max_rows"] == 700
    splits = Counter(split_of(id, prepare) for id in kept)
    assert abs(splits["calibration"] - 60) < 5 * (300 * 0.2 * 0.8) ** 0.5


def test_an_unknown_field_names_those_there_are() -> None:
    with pytest.raises(LoradagError, match=r"'b'.*There are: a"):
        select([{"a": "one"}], PREPARE, TEMPLATE, Counter())


def test_rows_come_back_as_written_and_twice_the_same_bytes(tmp_path) -> None:
    rows = [Row("id", "text ü", "te", [1, 2, 3], [0, 1, 1]), Row("b", "", "", [2], [1])]
    for name in ("one", "two"):
        write_rows(tmp_path / name, rows)
    assert read_rows(tmp_path / "one") == rows
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
