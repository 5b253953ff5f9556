"""Files of rows, in every format and compression, and what is wrong with them."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loradag.config.problems import LoradagError
from loradag.data import files
from loradag.data.origins import Source
from loradag.data.sources import Unreadable, rows_of

ROWS = [{"prompt": f"Hi {n}", "completion": "ü\nb"} for n in range(5)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def read(*paths: Path | str) -> list[tuple[str, Any]]:
    source = Source("mine", "file", paths=tuple(map(str, paths)))
    return [
        (f"{block.label}:{line}", row)
        for block in files.read_files(0, source)
        for line, row in rows_of(block)
    ]


def test_jsonl_and_its_compressions(tmp_path) -> None:
    contents = {
        "a.jsonl": JSONL,
        "b.json": JSONL,
        "c.jsonl.gz": gzip.compress(JSONL),
        "d.jsonl.bz2": bz2.compress(JSONL),
        "e.jsonl.xz": lzma.compress(JSONL),
        "f.jsonl.zst": pa.compress(JSONL, "zstd", asbytes=True),
        "g.jsonl": b"\xef\xbb\xbf" + JSONL.replace(b"\n", b"\r\n").rstrip(),
        "h.json": json.dumps(ROWS, indent=1).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        found = read(tmp_path / name)
        assert [row for _, row in found] == ROWS, name
        assert found[2][0] == f"{name}:3"


def test_csv_parquet_and_text(tmp_path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\nHi,"Ho\nho"\n7,0\n')
    assert read(tmp_path / "a.csv") == [
        ("a.csv:2", {"prompt": "Hi", "completion": "Ho\nho"}),
        ("a.csv:4", {"prompt": "7", "completion": "0"}),
    ]
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "b.parquet")
    assert [row for _, row in read(tmp_path / "b.parquet")] == ROWS
    (tmp_path / "c.txt").write_text("One.\n\nTwo.\n")
    assert read(tmp_path / "c.txt") == [
        ("c.txt:1", {"text": "One."}),
        ("c.txt:3", {"text": "Two."}),
    ]


def test_a_text_of_parquet_that_is_not_utf8(tmp_path) -> None:
    texts = pa.array([b"a", b"\xff", b"\xc3\xbc"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (_, first), (place, bad), (_, last) = read(tmp_path / "a.parquet")
    assert (first, last) == ({"text": "a"}, {"text": "ü"})
    assert place == "a.parquet:2"
    assert isinstance(bad, Unreadable)
    assert bad.reason == "not_utf8"


def test_folders_patterns_and_lists(tmp_path) -> None:
    for name in ("a/1.jsonl", "a/2.jsonl.gz", "b/3.csv", "b/notes.md"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        content = {"1": JSONL, "2": gzip.compress(JSONL), "3": b"prompt\nHi\n"}.get(path.name[0])
        path.write_bytes(content or b"#")
    every = read(tmp_path)
    assert len(every) == 11
    assert every[0][0] == "a/1.jsonl:1"
    assert read(tmp_path / "a", tmp_path / "b/3.csv", tmp_path / "a/1.jsonl") == every
    assert read(f"{tmp_path}/**/*.csv") == [("3.csv:2", {"prompt": "Hi"})]


def test_blocks_are_cut_at_lines_and_numbered_through(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    (tmp_path / "a.jsonl").write_bytes(JSONL + b"\n" + b'{"broken": ')
    found = read(tmp_path / "a.jsonl")
    assert [row for _, row in found[:5]] == ROWS
    place, bad = found[5]
    assert place == "a.jsonl:7"
    assert isinstance(bad, Unreadable)


def test_a_row_with_more_values_than_columns(tmp_path) -> None:
    (tmp_path / "a.csv").write_text("prompt,completion\na,b\na,b,c\n")
    place, bad = read(tmp_path / "a.csv")[1]
    assert place == "a.csv:3"
    assert isinstance(bad, Unreadable)
    (tmp_path / "b.csv").write_text('"prompt","comp\nletion"\n\n"a\n\nb",c\n\nd\n')
    (place, row), (last, bad) = read(tmp_path / "b.csv")
    assert (place, row) == ("b.csv:4", {"prompt": "a\n\nb", "comp\nletion": "c"})
    assert last == "b.csv:8"
    assert bad == Unreadable("columns", "1 values for 2 columns")


@pytest.mark.parametrize("size", [4, 7, 64, 2**20])
def test_a_json_file_is_read_a_value_at_a_time(tmp_path, monkeypatch, size) -> None:
    """A list, also of one line, objects over several lines, and what is no object."""
    monkeypatch.setattr(files, "BLOCK_BYTES", size)
    rows = [*ROWS, {"a": ["]", {"b": -1.5e3, "ü\\": '"'}], "c": None}]
    contents = [
        json.dumps(rows), json.dumps(rows, indent=2, ensure_ascii=False),
        f"\n\n {json.dumps(rows)} ",
        "\n".join(json.dumps(row, indent=1) for row in rows), json.dumps(rows[-1], indent=1),
    ]  # fmt: skip
    for at, content in enumerate(contents):
        (tmp_path / f"{at}.json").write_bytes(b"\xef\xbb\xbf" * (at % 2) + content.encode())
        found = read(tmp_path / f"{at}.json")
        assert [row for _, row in found] == (rows[-1:] if at == 4 else rows)
        assert found[-1][0] == f"{at}.json:{len(found)}"
    (tmp_path / "odd.json").write_text('[12345, {"a": 1}, "x"]')
    assert [isinstance(row, Unreadable) for _, row in read(tmp_path / "odd.json")] == [1, 0, 1]


def test_rows_that_are_not_utf8_are_alone_unreadable(tmp_path) -> None:
    (tmp_path / "a.csv").write_bytes(b"a,b\n1,2\n3,\xfc\n5,6\n")
    (tmp_path / "a.json").write_bytes(b'[{"a": 1}, {"a": {"b": "\xfc"}},\n{"a": 2}]')
    for name, place in (("a.csv", "a.csv:3"), ("a.json", "a.json:2")):
        rows = read(tmp_path / name)
        assert [isinstance(row, Unreadable) for _, row in rows] == [False, True, False]
        assert rows[1] == (place, Unreadable("not_utf8", "the byte 0xFC is not UTF-8"))


def test_rows_of_text_begin_after_the_byte_order_mark(tmp_path) -> None:
    for name in ("a.txt", "b.csv"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbftext\r\nTwo\r\n")
    assert [row for _, row in read(tmp_path / "a.txt")] == [{"text": "text"}, {"text": "Two"}]
    assert read(tmp_path / "b.csv") == [("b.csv:2", {"text": "Two"})]


def test_hidden_files_and_links_to_folders(tmp_path, monkeypatch) -> None:
    for name in ("a/1.jsonl", "a/.hidden.jsonl", "a/.checkpoints/2.jsonl", "b/3.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(JSONL)
    assert len(read(tmp_path / "a")) == 5
    (tmp_path / "a/link").symlink_to(tmp_path / "b", target_is_directory=True)
    assert len(read(tmp_path / "a/link")) == 5
    with pytest.raises(LoradagError, match=r"a/link is a link to a folder, and DVC"):
        read(tmp_path / "a")
    for paths in ((f"{tmp_path}/a/*/*.jsonl",), (f"{tmp_path}/a/1.jsonl", f"{tmp_path}/a/link")):
        with pytest.raises(LoradagError, match=r"a/link is a link to a folder, and DVC"):
            files.file_states([Source("mine", "file", paths=paths)])
    monkeypatch.chdir(tmp_path)
    mixed = read("a/1.jsonl", tmp_path / "b/3.jsonl")
    assert sorted(place for place, _ in mixed[::5]) == ["a/1.jsonl:1", "b/3.jsonl:1"]


def test_blocks_of_large_rows_have_fewer_of_them(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", 1000)
    rows = [{"text": f"{n}" * 400} for n in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text("text\n" + "".join(f"{row['text']}\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet", use_dictionary=False)
    for name in ("a.json", "b.csv", "c.parquet"):
        blocks = list(files.read_files(0, Source("mine", "file", paths=(f"{tmp_path}/{name}",))))
        assert len(blocks) > 2
        found = [row for block in blocks for row in rows_of(block)]
        assert [row for _, row in found] == rows
        first = 2 if name == "b.csv" else 1
        assert [number for number, _ in found] == list(range(first, first + 9))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"prepare\.path: a\.jsonl is empty"),
        ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.csv", b"prompt\n", r"a\.csv is empty"),
        ("a.json", b'[{"a": 1},', r"a\.json: the file ends within its list, after row 1"),
        ("a.json", b'[{"a": 1}, {"b": }]', r"a\.json:2: not JSON"),
        ("a.json", b'[{"a": 1} {"b": 2}]', r"a\.json: no comma after row 1"),
        ("a.json", b'[{"a": 1},]', r"a\.json:2: not JSON"),
        ("a.json", b'[{"a": 1}] {}', r"a\.json: there is more after the end"),
        ("a.csv", b"prompt,\xff\nHi,a\n", r"a\.csv: the header is not UTF-8"),
        ("a.csv", b'a,b\n1,2\n"3,4\n5,6\n', r"a\.csv:3: unexpected end of data"),
        ("a.csv", b"a,b,a\n1,2,3\n", r"a\.csv: two columns are named 'a'"),
        ("a.csv", "a,b\n1,2\n".encode("utf-16"), r"a\.csv: its text is UTF-16"),
        ("a.jsonl", JSONL.decode().encode("utf-16"), r"a\.jsonl: its text is UTF-16"),
        ("a.jsonl.gz", gzip.compress(JSONL * 99)[:-9], r"a\.jsonl\.gz: EOFError"),
        ("a.jsonl.zst", pa.compress(JSONL, "zstd", asbytes=True)[:-9], r"Truncated compressed"),
        ("a.jsonl.gz", b"no gzip", r"a\.jsonl\.gz: BadGzipFile"),
        ("a.parquet", b"no parquet", r"a\.parquet: not a parquet file"),
        ("a.xlsx", b"x", r"unknown ending.*\.jsonl"),
    ],
)
def test_unreadable_files_are_one_clear_error(tmp_path, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LoradagError, match=message):
        read(tmp_path / name)


def test_missing_files(tmp_path) -> None:
    for path in (tmp_path / "none.csv", f"{tmp_path}/*.csv"):
        with pytest.raises(LoradagError, match="no such file"):
            read(path)
    with pytest.raises(LoradagError, match="no file that ends in"):
        read(tmp_path)
