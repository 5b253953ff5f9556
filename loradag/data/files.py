"""Files of rows: jsonl, json, csv, parquet and text, also compressed, read as blocks."""

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from loradag.config.inputs import common_path
from loradag.config.problems import LoradagError
from loradag.data.origins import Source
from loradag.data.sources import BLOCK_ROWS, Block, Unreadable

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
BLOCK_BYTES = 8 * 2**20
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
SPACE = re.compile(r"[ \t\r\n]*")
# What a decoder gives for bytes that are not UTF-8, with errors="surrogateescape".
NOT_UTF8 = re.compile("[\udc80-\udcff]")
# Of a row: its number, the row itself and its size, roughly in bytes.
Numbered = tuple[int, Any, int]


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(str(path), "zstd"))


COMPRESSED: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _open_zstd,
}  # fmt: skip


def read_files(index: int, source: Source) -> Iterator[Block]:
    """The rows of every file that `source.paths` names, file by file.

    Raises:
        LoradagError: no such file, an unknown ending, an empty or an unreadable file.
    """
    files = list_files(source)
    shared = os.path.commonpath([os.path.abspath(file.parent) for file in files])
    for file in files:
        label = Path(os.path.relpath(file, shared)).as_posix()
        empty = True
        try:
            for block in _read_file(index, file, label):
                empty = False
                yield block
        except (OSError, EOFError, ValueError, csv.Error, lzma.LZMAError, zlib.error) as error:
            raise LoradagError(
                f"{source.key}: {label}: {type(error).__name__}: {error}. Check that it is what "
                "its ending states."
            ) from error
        if empty:
            raise LoradagError(f"{source.key}: {label} is empty. Name files with rows in them.")


def list_files(source: Source) -> list[Path]:
    """The files of paths, folders and patterns, each once, sorted."""
    files: set[Path] = set()
    for path in source.paths:
        place = Path(path).expanduser()
        if place.is_dir():
            found = [file for file in _walk(place, source) if _ending(file)]
            if not found:
                raise LoradagError(
                    f"{source.key} = {path!r}: the folder has no file that ends in one of "
                    f"{', '.join(ENDINGS)}."
                )
        elif place.is_file():
            found = [place]
        else:
            matches = glob.glob(str(place), recursive=True) if glob.has_magic(path) else []
            found = [Path(match) for match in matches if Path(match).is_file()]
            if not found:
                raise LoradagError(f"{source.key} = {path!r}: no such file.")
        files |= set(found)
    for file in sorted(files):
        if not _ending(file):
            raise LoradagError(
                f"{source.key}: {file}: unknown ending. Use one of {', '.join(ENDINGS)}, also "
                f"with {', '.join(COMPRESSED)} after it."
            )
    return sorted(files)


def _walk(folder: Path, source: Source) -> Iterator[Path]:
    """The files of a folder, without hidden ones, such as those of an editor or a file manager."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _refuse_link(Path(root, name), source)
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _refuse_link(folder: Path, source: Source) -> None:
    if folder.is_symlink():
        raise LoradagError(
            f"{source.key}: {folder} is a link to a folder, and DVC does not see when the files "
            "behind it change. Put the folder itself there, or name nothing but the link."
        )


def file_states(sources: list[Source]) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file that is read.

    Raises:
        LoradagError: a file is behind a link that DVC does not follow.
    """
    states = {}
    for is_held_out in (False, True):
        mine = [s for s in sources if s.kind == "file" and s.is_held_out == is_held_out]
        if not mine:
            continue
        dep = Path(common_path(path for source in mine for path in source.paths))
        for source in mine:
            for file in list_files(source):
                for folder in file.parents:
                    if folder != dep and folder.is_relative_to(dep):
                        _refuse_link(folder, source)
                state = file.stat()
                states[file] = (state.st_size, state.st_mtime_ns)
    return states


def _ending(file: Path) -> str | None:
    name = file.with_suffix("") if file.suffix in COMPRESSED else file
    return name.suffix if name.suffix in ENDINGS else None


def _read_file(index: int, file: Path, label: str) -> Iterator[Block]:
    ending = _ending(file)
    with COMPRESSED.get(file.suffix, lambda path: path.open("rb"))(file) as stream:
        if ending == ".parquet":
            yield from _parquet(index, stream, label)
            return
        if stream.peek(2).startswith(UTF16):
            raise LoradagError(f"{label}: its text is UTF-16. Convert it to UTF-8.")
        if ending == ".csv":
            yield from _numbered(index, label, _csv(stream, label))
            return
        start = _start(stream)
        if ending == ".txt":
            yield from _lines(index, stream, label, "text", start)
        elif ending == ".json" and not _is_lines(start):
            yield from _numbered(index, label, _json_values(start, stream, label))
        else:
            yield from _lines(index, stream, label, "json", start)


def _start(stream: Any) -> bytes:
    """The first bytes, up to the end of the first line that is not empty, or a part of it."""
    start = b""
    while not start.strip() and (line := stream.readline(BLOCK_BYTES)):
        start = (start + line).removeprefix(codecs.BOM_UTF8)
    return start


def _is_lines(start: bytes) -> bool:
    """Whether a JSON file has an object a line."""
    try:
        return isinstance(json.loads(start), dict)
    except (ValueError, RecursionError):
        return False


def _lines(index: int, stream: Any, label: str, kind: str, start: bytes) -> Iterator[Block]:
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


def _json_values(start: bytes, stream: Any, label: str) -> Iterator[Numbered]:
    """The elements of a JSON list, or JSON values one after the other, some MB in memory.

    Raises:
        LoradagError: a value that is not JSON, with its number, or what follows it.
    """
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    text, at, number = decode(start).lstrip(), 0, 0
    is_list = text.startswith("[")
    text = text.removeprefix("[")
    is_after_value = False

    def read_more() -> bool:
        """As much as is left: a large value is parsed a few times, not once for each block."""
        nonlocal text, at
        read = stream.read(max(BLOCK_BYTES, len(text) - at))
        text, at = text[at:] + decode(read, not read), 0
        return bool(read)

    while True:
        at = SPACE.match(text, at).end()  # type: ignore[union-attr]
        if at == len(text):
            if read_more():
                continue
            if is_list:
                raise LoradagError(f"{label}: the file ends within its list, after row {number}.")
            return
        if is_list and text[at] == "]" and (is_after_value or not number):
            if text[at + 1 :].strip() or stream.read(1024).strip():
                raise LoradagError(f"{label}: there is more after the end of its list.")
            return
        if is_list and is_after_value:
            if text[at] != ",":
                raise LoradagError(f"{label}: no comma after row {number} of its list.")
            at, is_after_value = at + 1, False
            continue
        try:
            value, end = parse(text, at)
        except (json.JSONDecodeError, RecursionError) as error:
            if read_more():
                continue
            raise LoradagError(f"{label}:{number + 1}: not JSON: {error}.") from error
        if end == len(text) and not isinstance(value, dict | list | str) and read_more():
            continue  # the number may go on
        number += 1
        yield number, _not_utf8(text, at, end) or value, end - at
        at, is_after_value = end, True


def _not_utf8(text: str, begin: int, end: int) -> Unreadable | None:
    found = NOT_UTF8.search(text, begin, end)
    if found is None:
        return None
    return Unreadable("not_utf8", f"the byte 0x{ord(found[0]) - 0xDC00:02X} is not UTF-8")


def _csv(stream: Any, label: str) -> Iterator[Numbered]:
    """The rows with the numbers of their first lines.

    Raises:
        LoradagError: an open quote, or a header that is not UTF-8 or has a name twice.
    """
    csv.field_size_limit(sys.maxsize)
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    # Not strict, a quote that is never closed would make one row of all that follow.
    reader = csv.reader(text, strict=True)
    line = 0
    try:
        header = next((values for values in reader if values), [])
        twice = sorted({name for name in header if name and header.count(name) > 1})
        if twice or NOT_UTF8.search("".join(header)):
            problem = f"two columns are named {twice[0]!r}" if twice else "the header is not UTF-8"
            raise LoradagError(f"{label}: {problem}. Correct the first line.")
        line = reader.line_num
        for values in reader:
            if values:
                row: Any = dict(zip(header, values, strict=False))
                if len(values) != len(header):
                    problem = f"{len(values)} values for {len(header)} columns"
                    row = Unreadable("columns", problem)
                joined = "".join(values)
                yield line + 1, _not_utf8(joined, 0, len(joined)) or row, len(joined)
            line = reader.line_num
    except csv.Error as error:
        raise LoradagError(f"{label}:{line + 1}: {error}. Close its quotes.") from error


def _parquet(index: int, stream: Any, label: str) -> Iterator[Block]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 1
    try:
        file = pq.ParquetFile(stream)
        groups = map(file.metadata.row_group, range(file.metadata.num_row_groups))
        size = sum(group.total_byte_size for group in groups) // max(1, file.metadata.num_rows)
        for batch in file.iter_batches(min(BLOCK_ROWS, max(1, BLOCK_BYTES // max(1, size)))):
            yield Block(index, label, first, "table", batch)
            first += len(batch)
    except pa.ArrowException as error:
        raise LoradagError(f"{label}: not a parquet file: {error}.") from error


def _numbered(index: int, label: str, rows: Iterator[Numbered]) -> Iterator[Block]:
    part: list[tuple[int, Any]] = []
    part_size = 0
    for number, row, size in rows:
        if not isinstance(row, dict | Unreadable):
            row = Unreadable("no_object", f"a {type(row).__name__}, not an object of fields")
        part.append((number, row))
        part_size += size
        if len(part) == BLOCK_ROWS or part_size >= BLOCK_BYTES:
            yield Block(index, label, part[0][0], "rows", part)
            part, part_size = [], 0
    if part:
        yield Block(index, label, part[0][0], "rows", part)
