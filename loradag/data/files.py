"""Files of rows: jsonl, json, csv, parquet and text, also compressed, read as blocks."""

import bz2
import csv
import glob
import gzip
import io
import json
import lzma
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from loradag.config.problems import LoradagError
from loradag.data.origins import Source
from loradag.data.sources import BLOCK_ROWS, Block, Unreadable

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
BLOCK_BYTES = 8 * 2**20


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow as pa

    return pa.CompressedInputStream(str(path), "zstd")  # type: ignore[no-any-return]


COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd,
}  # fmt: skip


def read_files(index: int, source: Source) -> Iterator[Block]:
    """The rows of every file that `source.paths` names, file by file.

    Raises:
        LoradagError: no such file, an unknown ending, an empty or an unreadable file.
    """
    files = list_files(source)
    shared = os.path.commonpath([file.parent for file in files])
    for file in files:
        label = Path(os.path.relpath(file, shared)).as_posix()
        empty = True
        try:
            for block in _read_file(index, file, label):
                empty = False
                yield block
        except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError) as error:
            raise LoradagError(
                f"{_key(source)}: {label}: {type(error).__name__}: {error}. Check that it is what "
                "its ending states."
            ) from error
        if empty:
            raise LoradagError(f"{_key(source)}: {label} is empty. Name files with rows in them.")


def list_files(source: Source) -> list[Path]:
    """The files of paths, folders and patterns, each once, sorted."""
    files: set[Path] = set()
    for path in source.paths:
        place = Path(path).expanduser()
        if place.is_dir():
            found = [file for file in place.rglob("*") if file.is_file() and _ending(file)]
            if not found:
                raise LoradagError(
                    f"{_key(source)} = {path!r}: the folder has no file that ends in one of "
                    f"{', '.join(ENDINGS)}."
                )
        elif place.is_file():
            found = [place]
        else:
            matches = glob.glob(str(place), recursive=True) if glob.has_magic(path) else []
            found = [Path(match) for match in matches if Path(match).is_file()]
            if not found:
                raise LoradagError(f"{_key(source)} = {path!r}: no such file.")
        files |= set(found)
    for file in sorted(files):
        if not _ending(file):
            raise LoradagError(
                f"{_key(source)}: {file}: unknown ending. Use one of {', '.join(ENDINGS)}, also "
                f"with {', '.join(COMPRESSED)} after it."
            )
    return sorted(files)


def _key(source: Source) -> str:
    return "prepare.eval_path" if source.is_held_out else "prepare.path"


def _ending(file: Path) -> str | None:
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    return name.suffix if name.suffix in ENDINGS else None


def _read_file(index: int, file: Path, label: str) -> Iterator[Block]:
    ending = _ending(file)
    with COMPRESSED.get(file.suffix, lambda path: path.open("rb"))(file) as stream:
        if ending == ".parquet":
            yield from _parquet(index, stream, label)
        elif ending == ".csv":
            yield from _csv(index, stream, label)
        elif ending == ".txt":
            yield from _lines(index, stream, label, "text")
        else:
            start = _skip_space(stream)
            if ending == ".json" and start.lstrip().startswith(b"["):
                yield from _json_list(index, start + stream.read(), label)
            else:
                yield from _lines(index, stream, label, "json", start)


def _skip_space(stream: Any) -> bytes:
    """The first bytes, up to one that is no space."""
    start = stream.read(3).removeprefix(b"\xef\xbb\xbf")
    while not start.strip() and (byte := stream.read(1)):
        start += byte
    return bytes(start)


def _lines(index: int, stream: Any, label: str, kind: str, start: bytes = b"") -> Iterator[Block]:
    """Blocks of complete lines; the boundaries depend on the bytes alone."""
    number, rest = 1, start
    while True:
        read = stream.read(BLOCK_BYTES)
        rest += read
        end = rest.rfind(b"\n") + 1 if read else len(rest)
        if end:
            content, rest = rest[:end], rest[end:]
            if content.strip():
                yield Block(index, label, number, kind, content)
            number += content.count(b"\n")
        if not read:
            return


def _json_list(index: int, content: bytes, label: str) -> Iterator[Block]:
    yield from _numbered(index, label, enumerate(json.loads(content), start=1))


def _csv(index: int, stream: Any, label: str) -> Iterator[Block]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""))

    def rows() -> Iterator[tuple[int, Any]]:
        line = 2
        try:
            for row in reader:
                yield line, row
                line = reader.line_num + 1
        except UnicodeDecodeError as error:
            raise LoradagError(f"{label}: not UTF-8 after line {line}: {error}.") from error

    yield from _numbered(index, label, rows())


def _parquet(index: int, stream: Any, label: str) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 1
    try:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=BLOCK_ROWS):
            yield Block(index, label, first, "table", batch)
            first += len(batch)
    except pa.ArrowInvalid as error:
        raise LoradagError(f"{label}: not a parquet file: {error}.") from error


def _numbered(index: int, label: str, rows: Iterator[tuple[int, Any]]) -> Iterator[Block]:
    part: list[tuple[int, Any]] = []
    for number, row in rows:
        if not isinstance(row, dict):
            row = Unreadable("no_object", f"a {type(row).__name__}, not an object of fields")
        elif None in row:
            row = Unreadable("columns", "more values than the header has columns")
        part.append((number, row))
        if len(part) == BLOCK_ROWS:
            yield Block(index, label, part[0][0], "rows", part)
            part = []
    if part:
        yield Block(index, label, part[0][0], "rows", part)
