"""The two passes of a preparation: over a block of a source, and over some partitions of the ids.

Between them, the rows of a block are in a file of one record batch for each partition.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.data.dropped import Dropped
from loradag.data.near_duplicates import signature
from loradag.data.rendering import Renderer
from loradag.data.rows import schema
from loradag.data.selection import SPLITS, check_length, identify, split_of
from loradag.data.shapes import DroppedError, Example, Shape
from loradag.data.sources import Block, Unreadable, rows_of
from loradag.data.templates import Template
from loradag.data.tokenization import Encoded, Rendered, Tokenization
from loradag.data.transform import Transform

if TYPE_CHECKING:
    import numpy as np

# A block, and the shape of its rows; None: all of them are unreadable or filtered out.
Shaped = tuple[Block, Shape | None]

PARTITIONS = 256  # by the first byte of an id
TASK_ROWS = 1024  # that are in memory as Python objects; a task has one partition at least
# Columns of the first pass's files.
BLOCK_TYPES = {
    "id": "uint64",
    "position": "uint64",
    "content": "uint64",
    "opening": "uint64",
    "place": "string",
    "example": "large_string",
    "signature": "binary",
}


@dataclass
class Parsed:
    """What the first pass found in a part of a source; its rows are in `file`."""

    source: int
    file: Path
    rows: "np.ndarray[Any, Any]"  # of each partition
    rows_in: int
    dropped: Dropped
    seen: set[str]


@dataclass
class Made:
    """What the second pass made of one task; its rows are in `files`, by split."""

    files: dict[str, Path] = field(default_factory=dict)
    dropped: Dropped = field(default_factory=Dropped)
    truncated: Dropped = field(default_factory=Dropped)
    kept: Counter[int] = field(default_factory=Counter)  # by source
    tokens: Counter[str] = field(default_factory=Counter)
    lengths: list["np.ndarray[Any, Any]"] = field(default_factory=list)
    openings: dict[str, list["np.ndarray[Any, Any]"]] = field(default_factory=dict)


class Passes:
    """The two passes' work, on one block and on one task, in whatever process."""

    def __init__(self, prepare: Prepare, tokenizer: Any, scratch: Path, is_large: bool) -> None:
        self.prepare = prepare
        self.renderer = Renderer(tokenizer, Template(prepare.template, "", "", prepare.date))
        self.tokenization = Tokenization(tokenizer, many=is_large)
        self.scratch, self.most_rows = scratch, TASK_ROWS
        self.transform = Transform(prepare.transform)
        self.left_out = "over_share" if prepare.source == "mix" else "over_max_rows"

    def parse(self, number: int, part: list[Shaped], is_held_out: bool) -> Parsed:
        """Rows of some blocks as examples, sorted by id."""
        import numpy as np
        import pyarrow as pa

        dropped, seen, rows_in = Dropped(), set[str](), 0
        found: list[tuple[int, int, int, int, str, str, bytes]] = []
        numbered = (
            (block.label, shape, line, row) for block, shape in part for line, row in rows_of(block)
        )
        for at, (label, shape, line, row) in enumerate(numbered):
            rows_in += 1
            position, place = (number << 32) + at, f"{label}:{line}"
            try:
                if isinstance(row, Unreadable):
                    raise DroppedError(row.reason, row.message, is_error=True)
                row = self.transform(row)
                seen |= row.keys()
                assert shape is not None
                example = shape.convert(row)
                check_length(example, self.prepare)
                identity, serialized = identify(row, example, self.prepare), example.serialized
            except DroppedError as problem:
                self._drop(problem, dropped, position, place)
            except UnicodeEncodeError as error:
                self._drop(not_utf8(error), dropped, position, place)
            else:
                id, content, opening = (int(text, 16) for text in vars(identity).values())
                similar = signature(example.texts) if self.prepare.near_duplicates else b""
                found.append((id, position, content, opening, place, serialized, similar))
        found.sort()
        columns = zip(*found, strict=True) if found else [[]] * len(BLOCK_TYPES)
        types = [getattr(pa, name)() for name in BLOCK_TYPES.values()]
        arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
        source = part[0][0].source
        arrays.append(pa.array([source] * len(found), pa.int32()))
        arrays.append(pa.array([is_held_out] * len(found), pa.bool_()))
        batch = pa.record_batch(arrays, [*BLOCK_TYPES, "source", "held_out"])
        starts = np.searchsorted(batch["id"].to_numpy(), lowest_ids())
        bounds = [*starts.tolist(), len(found)]
        file = self.scratch / f"{number}.block.arrow"
        with open_arrow(file, batch.schema) as writer:
            for begin, end in pairwise(bounds):
                writer.write_batch(batch.slice(begin, end - begin))
        return Parsed(source, file, np.diff(bounds), rows_in, dropped, seen)

    def _drop(self, problem: DroppedError, dropped: Dropped, position: int, place: str) -> None:
        if problem.is_error and self.prepare.on_error == "stop":
            raise LoradagError(
                f"{place}: {problem}. Correct the row, or set prepare.on_error=drop to leave such "
                "rows out."
            )
        dropped.add(problem.reason, position, place)

    def make(
        self,
        number: int,
        files: list[Path],
        partitions: range,
        leaked: set[int],
        near: set[int],
        left_out: set[int],
    ) -> Made:
        """The rows of some partitions, encoded, without those of the three sets of ids."""
        made, last = Made(), None
        with ExitStack() as stack:
            writers: dict[str, Any] = {}
            for rows in _sorted_rows(files, partitions, self.most_rows):
                kept, rendered = [], []
                for row in rows:
                    if row["id"] in leaked and not row["held_out"]:
                        made.dropped.add("in_held_out", row["position"], row["place"])
                        continue
                    if last is not None and row["id"] == last["id"]:
                        made.dropped.add("duplicate", row["position"], row["place"])
                        continue
                    last = row
                    if row["id"] in near:
                        made.dropped.add("near_duplicate", row["position"], row["place"])
                        continue
                    if row["id"] in left_out:
                        made.dropped.counts[self.left_out] += 1
                        continue
                    try:
                        rendered.append(self.renderer.render(Example(**json.loads(row["example"]))))
                        kept.append(row)
                    except DroppedError as problem:
                        self._drop(problem, made.dropped, row["position"], row["place"])
                for split, table in self._encode(kept, rendered, made).items():
                    if split not in writers:
                        file = made.files[split] = self.scratch / f"{number}.{split}.arrow"
                        writers[split] = stack.enter_context(open_arrow(file, table.schema))
                    writers[split].write_table(table)
        return made

    def _encode(
        self, rows: list[dict[str, Any]], rendered: list[Rendered], made: Made
    ) -> dict[str, Any]:
        """Tables of `rows.schema()`, by split; what they hold is counted in `made`."""
        import numpy as np

        by_split: dict[str, list[tuple[str, Rendered, Encoded]]] = {name: [] for name in SPLITS}
        openings: dict[str, list[int]] = {name: [] for name in SPLITS}
        lengths = []
        for row, text, encoded in zip(
            rows, rendered, self.tokenization.encode(rendered), strict=True
        ):
            length = len(encoded.input_ids)
            if length > self.prepare.max_tokens:
                if self.prepare.overlong == "drop":
                    made.dropped.add("over_max_tokens", row["position"], row["place"])
                    continue
                encoded = encoded.cut(self.prepare.max_tokens)
                if not encoded.assistant_mask.any():
                    made.dropped.add("answer_over_max_tokens", row["position"], row["place"])
                    continue
                made.truncated.add("truncated", row["position"], row["place"])
            opening = f"{row['opening']:016x}"
            split = "eval" if row["held_out"] else split_of(opening, self.prepare)
            openings[split].append(row["opening"])
            by_split[split].append((f"{row['id']:016x}", text, encoded))
            lengths.append(len(encoded.input_ids))
            made.kept[row["source"]] += 1
            made.tokens[split] += len(encoded.input_ids)
            if split == "train":
                made.tokens["completion"] += int(encoded.completion_mask.sum())
                made.tokens["assistant"] += int(encoded.assistant_mask.sum())
        made.lengths.append(np.asarray(lengths, np.int32))
        for split, found in openings.items():
            made.openings.setdefault(split, []).append(np.asarray(found, np.uint64))
        return {split: _table(found) for split, found in by_split.items() if found}


def not_utf8(error: UnicodeEncodeError) -> DroppedError:
    """Of a row with half a surrogate pair, which JSON can spell."""
    code = ord(error.object[error.start])
    message = f"U+{code:04X} is half of a surrogate pair, no character"
    return DroppedError("not_utf8", message, is_error=True)


def _sorted_rows(files: list[Path], partitions: range, most: int) -> Iterator[list[dict[str, Any]]]:
    """Rows of all files sorted by id, equal ids by preference; at most `most` at a time."""
    import numpy as np
    import pyarrow as pa

    batches = []
    for file in files:
        # Read, not mapped: of a map the system counts whole neighbourhoods as this process's.
        with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
            batches += [reader.get_batch(partition) for partition in partitions]
    table = pa.Table.from_batches(batches).combine_chunks()
    keys = (column(table, "position"), ~column(table, "held_out"), column(table, "id"))
    order = np.lexsort(keys)
    for part in np.array_split(order, -(-len(order) // most)):
        yield table.take(part).to_pylist()


def _table(rows: list[tuple[str, Rendered, Encoded]]) -> Any:
    """Rows as `rows.schema()` has them."""
    import numpy as np
    import pyarrow as pa

    ids, texts, encoded = zip(*rows, strict=True)
    starts = np.cumsum([0, *(len(one.input_ids) for one in encoded)], dtype=np.int32)
    columns = [
        pa.array(ids),
        pa.array([t.text for t in texts]),
        pa.array([t.prompt for t in texts]),
    ]
    for name in Encoded.__dataclass_fields__:
        values = np.concatenate([getattr(one, name) for one in encoded])
        columns.append(pa.ListArray.from_arrays(starts, values))
    return pa.Table.from_arrays(columns, schema=schema())


def lowest_ids() -> "np.ndarray[Any, Any]":
    """The lowest id of each partition."""
    import numpy as np

    return np.arange(PARTITIONS, dtype=np.uint64) * np.uint64(2**64 // PARTITIONS)


@contextmanager
def open_arrow(path: Path, schema: Any) -> Iterator[Any]:
    """A writer of batches or tables."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        yield writer


def column(table: Any, name: str) -> "np.ndarray[Any, Any]":
    # Of a ChunkedArray, to_numpy would import pandas.
    column: np.ndarray[Any, Any] = table[name].combine_chunks().to_numpy(zero_copy_only=False)
    return column
