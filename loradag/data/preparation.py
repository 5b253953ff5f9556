"""Rows of any number to prepared rows, in flat memory and on all cores.

Two passes, as an external sort. The first parses blocks of the sources, filters their rows and
writes each block's rows to a file, partitioned by the id of their content. The second takes a
partition from all of those files at a time: equal ids meet there, so that duplicates are dropped,
the rest is rendered, tokenized and written in the order of the ids. Blocks and partitions are
independent, so processes share them; what is written does not depend on how many there are.
"""

import json
import multiprocessing
import os
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.data.near_duplicates import find_near_duplicates, signature
from loradag.data.origins import Source
from loradag.data.rendering import Renderer
from loradag.data.rows import open_writer, schema
from loradag.data.selection import SPLITS, check_length, identify, sample, split_of
from loradag.data.shapes import DroppedError, Example, Shape, detect_format
from loradag.data.sources import Block, Fields, Unreadable, read_blocks, rows_of
from loradag.data.templates import Template
from loradag.data.tokenization import Encoded, Rendered, Tokenization
from loradag.data.transform import Transform

if TYPE_CHECKING:
    import numpy as np

PARTITIONS = 256  # by the first byte of an id
TASK_ROWS = 1024  # that are in memory as Python objects; a task has one partition at least
# Below this, starting processes takes longer than they save.
PARALLEL_BYTES = 16 * 2**20
# Columns of the first pass's files.
BLOCK_TYPES = {
    "id": "uint64",
    "position": "uint64",
    "opening": "uint64",
    "place": "string",
    "example": "large_string",
    "signature": "binary",
}
# Imported before the processes of the work part.
PRELOADED = [__name__, "fastokens", "numpy", "pandas", "pyarrow.parquet", "tokenizers",
             "transformers.utils.chat_template_utils"]  # fmt: skip
PLACES = 5  # of dropped rows that a report names, a reason


@dataclass
class Dropped:
    """Rows that were not kept: how many by reason, and where the first of them are."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, reason: str, position: int, place: str) -> None:
        self.counts[reason] += 1
        self._keep_first(reason, [(position, place)])

    def merge(self, other: "Dropped") -> None:
        self.counts += other.counts
        for reason, places in other.places.items():
            self._keep_first(reason, places)

    def _keep_first(self, reason: str, places: list[tuple[int, str]]) -> None:
        self.places[reason] = sorted([*self.places.get(reason, []), *places])[:PLACES]


@dataclass
class Parsed:
    """What the first pass found in one block; its rows are in `file`."""

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


@dataclass
class Prepared:
    """What became of all rows."""

    rows_in: Counter[int] = field(default_factory=Counter)  # by source
    kept: Counter[int] = field(default_factory=Counter)
    dropped: Dropped = field(default_factory=Dropped)
    truncated: Dropped = field(default_factory=Dropped)
    split_rows: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    lengths: list["np.ndarray[Any, Any]"] = field(default_factory=list)
    openings: dict[str, list["np.ndarray[Any, Any]"]] = field(default_factory=dict)
    shapes: dict[int, Shape] = field(default_factory=dict)  # by source
    seen: dict[int, set[str]] = field(default_factory=dict)  # fields, by source

    def check(self) -> None:
        """Each row that was read is kept, or counted under a reason.

        Raises:
            RuntimeError: a row is lost.
        """
        read, kept, dropped = self.rows_in.total(), self.kept.total(), self.dropped.counts.total()
        if read != kept + dropped or kept != self.split_rows.total():
            raise RuntimeError(f"of {read} rows, {kept} are kept and {dropped} dropped")


def prepare_rows(
    prepare: Prepare, sources: list[Source], tokenizer: Any, folder: Path, processes: int
) -> Prepared:
    """Write `folder`/SPLIT.parquet of each split.

    Raises:
        LoradagError: a source or a row cannot be read, or a field is in no row.
    """
    done = Prepared()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        blocks = _shaped(prepare, sources, done.shapes)
        first = _up_to(blocks, PARALLEL_BYTES)
        is_large = sum(block.size for _, block in first) >= PARALLEL_BYTES
        work = _Work(prepare, tokenizer, Path(name), is_large)
        with _Processes(work, processes if is_large else 1) as run:
            parsed = _parse(chain(first, blocks), run, done, sources)
            _check_fields(done, prepare)
            _make(_tasks(parsed, sources, prepare), run, done, folder)
    done.check()
    return done


def row_template(prepare: Prepare, done: Prepared) -> Template:
    """How the first source's rows were rendered, for prompts to be rendered the same way."""
    shape = done.shapes[0]
    return Template(prepare.template, shape.prompt, shape.completion, prepare.date)


def _shaped(
    prepare: Prepare, sources: list[Source], shapes: dict[int, Shape]
) -> Iterator[tuple[int, Block]]:
    """Numbered blocks; into `shapes` the shape of each source, found in its first block."""
    number = 0
    for index, source in enumerate(sources):
        for block in read_blocks(index, source):
            if index not in shapes:
                shapes[index] = _detect(block, prepare)
            yield number, block
            number += 1


def _up_to(blocks: Iterator[tuple[int, Block]], size: int) -> list[tuple[int, Block]]:
    """The first blocks, of `size` bytes or all that there are."""
    taken: list[tuple[int, Block]] = []
    while sum(block.size for _, block in taken) < size and (block := next(blocks, None)):
        taken.append(block)
    return taken


def _detect(block: Block, prepare: Prepare) -> Shape:
    transform = Transform(prepare.transform)
    rows: list[Fields] = []
    for _, row in rows_of(block):
        if isinstance(row, dict):
            try:
                rows.append(transform(row))
            except DroppedError:
                continue
        if len(rows) == 100:
            break
    shape = detect_format(rows, prepare)
    if shape is None:
        found = sorted({name for row in rows for name in row})
        raise LoradagError(
            f"prepare.format = 'auto': {block.label} has the fields {', '.join(found) or 'none'}, "
            "which are no format's. Set prepare.format with prepare.fields, or prepare.prompt and "
            "prepare.completion; docs/data.md shows each."
        )
    if shape.is_dialogue and prepare.template != "chat":
        raise LoradagError(
            f"prepare.template = {prepare.template!r}: {block.label} has dialogues (format "
            f"{shape.format}), which a chat template renders. Set prepare.template=chat."
        )
    return shape


class _Work:
    """The two passes' work, on one block and on one task, in whatever process."""

    def __init__(self, prepare: Prepare, tokenizer: Any, scratch: Path, is_large: bool) -> None:
        self.prepare = prepare
        self.renderer = Renderer(tokenizer, Template(prepare.template, "", "", prepare.date))
        self.tokenization = Tokenization(tokenizer, many=is_large)
        self.scratch, self.most_rows = scratch, TASK_ROWS
        self.transform = Transform(prepare.transform)
        self.left_out = "over_share" if prepare.source == "mix" else "over_max_rows"

    def parse(self, number: int, block: Block, shape: Shape, is_held_out: bool) -> Parsed:
        """Rows of a block as examples, sorted by id."""
        import numpy as np
        import pyarrow as pa

        dropped, seen, rows_in = Dropped(), set[str](), 0
        found: list[tuple[int, int, int, str, str, bytes]] = []
        for at, (line, row) in enumerate(rows_of(block)):
            rows_in += 1
            position, place = (number << 32) + at, f"{block.label}:{line}"
            try:
                if isinstance(row, Unreadable):
                    raise DroppedError(row.reason, row.message, is_error=True)
                row = self.transform(row)
                seen |= row.keys()
                example = shape.convert(row)
                check_length(example, self.prepare)
                id, opening = identify(row, example, self.prepare)
            except DroppedError as problem:
                self._drop(problem, dropped, position, place)
            else:
                given = {f.name: getattr(example, f.name) for f in fields(example)}
                payload = json.dumps(given, ensure_ascii=False)
                similar = signature(example.texts) if self.prepare.near_duplicates else b""
                found.append((int(id, 16), position, int(opening, 16), place, payload, similar))
        found.sort()
        columns = zip(*found, strict=True) if found else [[]] * len(BLOCK_TYPES)
        types = [getattr(pa, name)() for name in BLOCK_TYPES.values()]
        arrays = [pa.array(c, t) for c, t in zip(columns, types, strict=True)]
        arrays.append(pa.array([block.source] * len(found), pa.int32()))
        arrays.append(pa.array([is_held_out] * len(found), pa.bool_()))
        batch = pa.record_batch(arrays, [*BLOCK_TYPES, "source", "held_out"])
        starts = np.searchsorted(batch["id"].to_numpy(), _first_ids(PARTITIONS))
        bounds = [*starts.tolist(), len(found)]
        file = self.scratch / f"{number}.block.arrow"
        with _open_arrow(file, batch.schema) as writer:
            for begin, end in pairwise(bounds):
                writer.write_batch(batch.slice(begin, end - begin))
        return Parsed(block.source, file, np.diff(bounds), rows_in, dropped, seen)

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
        left_out: set[int],
        near: set[int],
    ) -> Made:
        """The rows of some partitions, encoded."""
        made, last = Made(), None
        with ExitStack() as stack:
            writers: dict[str, Any] = {}
            for rows in _sorted_rows(files, partitions, self.most_rows):
                kept, rendered = [], []
                for row in rows:
                    if last is not None and row["id"] == last["id"]:
                        leaked = last["held_out"] and not row["held_out"]
                        reason = "in_held_out" if leaked else "duplicate"
                        made.dropped.add(reason, row["position"], row["place"])
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
                        writers[split] = stack.enter_context(_open_arrow(file, table.schema))
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
                made.truncated.add("truncated", row["position"], row["place"])
                encoded = encoded.cut(self.prepare.max_tokens)
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
    keys = (_column(table, "position"), ~_column(table, "held_out"), _column(table, "id"))
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


class _Processes:
    """Runs the methods of `work` on tasks, here or in other processes, results in order."""

    def __init__(self, work: _Work, count: int) -> None:
        self.work = work
        self.count = count
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            # Forked, but not from here, where libraries have started threads: from a server that
            # has imported what the work needs, once for all processes.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            self.pool = ProcessPoolExecutor(count, context, _start, (work,))

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool:
            self.pool.shutdown(cancel_futures=True)

    def map(self, method: str, tasks: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        if self.pool is None:
            for task in tasks:
                yield getattr(self.work, method)(*task)
            return
        waiting: deque[Future[Any]] = deque()
        for task in tasks:
            waiting.append(self.pool.submit(_call, method, task))
            if len(waiting) > 2 * self.count:  # no more tasks in memory than keep all busy
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_work: _Work | None = None  # of this process


def _start(work: _Work) -> None:
    global _work
    _work = work
    os.environ["RAYON_NUM_THREADS"] = "1"  # the processes share the cores already


def _call(method: str, task: tuple[Any, ...]) -> Any:
    return getattr(_work, method)(*task)


def _parse(
    blocks: Iterable[tuple[int, Block]], run: _Processes, done: Prepared, sources: list[Source]
) -> list[Parsed]:
    """The first pass."""
    from tqdm import tqdm

    found = []
    tasks = ((n, b, done.shapes[b.source], sources[b.source].is_held_out) for n, b in blocks)
    with tqdm(unit="rows", desc="parse") as bar:
        for parsed in run.map("parse", tasks):
            found.append(parsed)
            done.rows_in[parsed.source] += parsed.rows_in
            done.dropped.merge(parsed.dropped)
            done.seen.setdefault(parsed.source, set()).update(parsed.seen)
            bar.update(parsed.rows_in)
    return found


def _check_fields(done: Prepared, prepare: Prepare) -> None:
    for index, shape in done.shapes.items():
        seen = done.seen[index]
        for name in [*shape.required, *(prepare.unique or [])]:
            if seen and name not in seen:
                raise LoradagError(
                    f"prepare: no row has the field {name!r}. There are: "
                    f"{', '.join(sorted(seen))}. Correct prepare.prompt, prepare.completion, "
                    "prepare.fields or prepare.unique."
                )


def _tasks(parsed: list[Parsed], sources: list[Source], prepare: Prepare) -> list[tuple[Any, ...]]:
    """Of the second pass: which partitions of which files, and the ids to leave out of them."""
    import numpy as np

    files = [one.file for one in parsed]
    near, left_out = _left_out(files, sources, prepare)
    rows = np.sum([one.rows for one in parsed], axis=0) if parsed else np.zeros(PARTITIONS)
    first_ids = _first_ids(PARTITIONS)
    tasks: list[tuple[Any, ...]] = []
    begin = 0
    for end in range(1, PARTITIONS + 1):
        count = rows[begin:end].sum()
        if count >= TASK_ROWS or (end == PARTITIONS and count):
            chosen = []
            for ids in (left_out, near):
                at = [*np.searchsorted(ids, first_ids).tolist(), len(ids)]
                chosen.append(set(ids[at[begin] : at[end]].tolist()))
            tasks.append((len(tasks), files, range(begin, end), *chosen))
            begin = end
    return tasks


def _first_ids(partitions: int) -> "np.ndarray[Any, Any]":
    """The lowest id of each partition."""
    import numpy as np

    return np.arange(partitions, dtype=np.uint64) * np.uint64(2**64 // partitions)


def _left_out(
    files: list[Path], sources: list[Source], prepare: Prepare
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """The ids, sorted, that are near duplicates, and those that a sample or mix leaves out."""
    import numpy as np

    none = np.zeros(0, np.uint64)
    weights = [source.weight for source in sources]
    is_sampled = prepare.max_rows is not None or any(weights)
    if not files or not (is_sampled or prepare.near_duplicates):
        return none, none
    names = ["id", "held_out", "position", "source"]
    names += ["signature"] if prepare.near_duplicates else []
    table = _read_columns(files, names)
    ids, held_out, positions, origins = (_column(table, name) for name in names[:4])
    order = np.lexsort((positions, ~held_out, ids))
    _, firsts = np.unique(ids[order], return_index=True)
    kept = order[firsts]
    near = none
    if prepare.near_duplicates:
        preferred = kept[np.argsort(~held_out[kept], kind="stable")]  # held-out rows first
        chosen = table["signature"].take(preferred).to_pylist()
        near = find_near_duplicates(ids[preferred], chosen, prepare.near_duplicates)
        kept = kept[~np.isin(ids[kept], near)]
    kept = kept[~held_out[kept]]
    sampled = sample(ids[kept], origins[kept], weights, prepare.max_rows)
    return near, ids[kept][~sampled]


def _make(
    tasks: list[tuple[Any, ...]],
    run: _Processes,
    done: Prepared,
    folder: Path,
) -> None:
    """The second pass: the tasks' rows into the splits' files, in the order of their ids."""
    import pyarrow as pa
    from tqdm import tqdm

    with ExitStack() as stack, tqdm(total=len(tasks), unit="parts", desc="tokenize") as bar:
        writers = {
            split: stack.enter_context(open_writer(folder / f"{split}.parquet")) for split in SPLITS
        }
        for made in run.map("make", tasks):
            for split, file in made.files.items():
                with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
                    for at in range(reader.num_record_batches):
                        batch = reader.get_batch(at)
                        writers[split].write_batch(batch)
                        done.split_rows[split] += len(batch)
                file.unlink()
            done.kept += made.kept
            done.dropped.merge(made.dropped)
            done.truncated.merge(made.truncated)
            done.tokens += made.tokens
            done.lengths += made.lengths
            for split, openings in made.openings.items():
                done.openings.setdefault(split, []).extend(openings)
            bar.update()


@contextmanager
def _open_arrow(path: Path, schema: Any) -> Iterator[Any]:
    """A writer of batches or tables."""
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        yield writer


def _column(table: Any, name: str) -> "np.ndarray[Any, Any]":
    # Of a ChunkedArray, to_numpy would import pandas.
    column: np.ndarray[Any, Any] = table[name].combine_chunks().to_numpy(zero_copy_only=False)
    return column


def _read_columns(files: list[Path], names: list[str]) -> Any:
    """Some columns of the blocks, all their rows."""
    import pyarrow as pa

    tables = []
    for file in files:
        with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
            tables.append(reader.read_all().select(names).combine_chunks())
    return pa.concat_tables(tables)
