import json
from dataclasses import replace

import pytest

from loradag.config.problems import LoradagError
from loradag.data.sources import read_source
from tests.conftest import smoke_config

FILE = smoke_config("prepare=file", "prepare.path=x").prepare


def test_quotes_are_clean_and_attributed() -> None:
    rows = list(read_source(smoke_config().prepare))
    attributed = [row for row in rows if "author" in row]
    assert len(attributed) > 4000
    for row in rows:
        assert not {"\b", "\n", "\t"} & set(row["quote"] + row.get("author", ""))
    assert any(row["author"] == "Oscar Wilde" for row in attributed)


def test_glosses_are_of_common_words() -> None:
    rows = list(read_source(smoke_config("prepare=glosses").prepare))
    words = {row["word"] for row in rows}
    assert len(rows) == len(words) == 20_553
    assert "house" in words
    assert all(row["gloss"].endswith(".") for row in rows)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_files_of_ones_own(tmp_path, suffix) -> None:
    path = tmp_path / f"rows{suffix}"
    row = {"prompt": "Hi", "completion": "Ho"}
    text = json.dumps(row) if suffix == ".jsonl" else "prompt,completion\nHi,Ho"
    path.write_text(text + "\n", encoding="utf-8")
    assert list(read_source(replace(FILE, path=str(path)))) == [row]


def test_a_broken_row_is_named(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Hi", "completion": "Ho"}\n{"prompt": \n', encoding="utf-8")
    with pytest.raises(LoradagError, match=r"prepare\.path.*rows\.jsonl"):
        list(read_source(replace(FILE, path=str(path))))


def test_missing_and_unknown_files(tmp_path) -> None:
    with pytest.raises(LoradagError, match="no such file"):
        list(read_source(replace(FILE, path=str(tmp_path / "none.csv"))))
    with pytest.raises(LoradagError, match="unknown ending"):
        list(read_source(replace(FILE, path=str(tmp_path / "rows.xlsx"))))


def test_a_hub_out_of_reach_is_one_clear_error() -> None:
    with pytest.raises(LoradagError, match="prepare=quotes needs none"):
        list(read_source(smoke_config("prepare=english_quotes").prepare))
