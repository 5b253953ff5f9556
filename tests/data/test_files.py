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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"prepare\.path: a\.jsonl is empty"),
        ("a.jsonl", b"\n \n", r"a\.jsonl is empty"),
        ("a.json", b"[]", r"a\.json is empty"),
        ("a.csv", b"prompt\n", r"a\.csv is empty"),
        ("a.json", b'[{"a": 1},', r"a\.json: JSONDecodeError"),
        ("a.csv", b"prompt\nHi\n\xff\n", r"a\.csv: not UTF-8 after line"),
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
