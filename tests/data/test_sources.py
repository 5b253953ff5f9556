import pytest

from loradag.data.origins import Source, list_sources
from loradag.data.sources import Unreadable, read_blocks, rows_of

QUOTES, GLOSSES = Source("quotes", "quotes"), Source("glosses", "glosses")


def rows(source: Source) -> list:
    return [row for block in read_blocks(0, source) for _, row in rows_of(block)]


def test_quotes_are_clean_and_attributed() -> None:
    quotes = rows(QUOTES)
    attributed = [row for row in quotes if "author" in row]
    assert len(attributed) > 4000
    for row in quotes:
        assert not {"\b", "\n", "\t"} & set(row["quote"] + row.get("author", ""))
    assert any(row["author"] == "Oscar Wilde" for row in attributed)


def test_glosses_are_of_common_words() -> None:
    glosses = rows(GLOSSES)
    words = {row["word"] for row in glosses}
    assert len(glosses) == len(words) == 20_553
    assert "house" in words
    assert all(row["gloss"].endswith(".") for row in glosses)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": ', "broken_json"),
        (b"[1]", "no_object"),
        (b'{"a": "\xff"}', "not_utf8"),
        (b"[" * 10**5 + b"]" * 10**5, "broken_json"),
        ('{"a": 1}'.encode("utf-16-le"), "broken_json"),
        (b'{"a": "\xed\xa0\x80"}', "not_utf8"),
    ],
)
def test_lines_that_are_no_rows(line, reason) -> None:
    from loradag.data.sources import Block

    good = b'{"a": "\xc3\xbc"}'
    block = Block(0, "x.jsonl", 5, "json", good + b"\n\n" + line + b"\n")
    (first, row), (third, bad) = rows_of(block)
    assert (first, row) == (5, {"a": "ü"})
    assert third == 7
    assert isinstance(bad, Unreadable)
    assert bad.reason == reason


def test_a_mix_names_its_sources_and_weights() -> None:
    mix = [{"path": ["a/x.jsonl", "b.csv"], "weight": 2}, {"id": "org/set", "config": "main"},
           {"source": "quotes", "name": "sayings"}]  # fmt: skip
    found = list_sources(source="mix", id=None, config=None, revision=None, mix=mix)
    assert [(s.name, s.kind, s.weight) for s in found] == [
        ("x.jsonl b.csv", "file", 2.0), ("org/set main", "hub", 1.0), ("sayings", "quotes", 1.0),
    ]  # fmt: skip
    assert (found[1].revision, found[1].split) == ("main", "train")
    mix = [{"path": "a/x.jsonl"}, {"path": "b/x.jsonl"}, {"path": "c.csv"}]
    found = list_sources(source="mix", id=None, config=None, revision=None, mix=mix)
    assert [source.name for source in found] == ["x.jsonl (1)", "x.jsonl (2)", "c.csv"]
