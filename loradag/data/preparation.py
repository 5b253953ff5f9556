"""Rows of any number to prepared rows, in flat memory and on all cores.

Two passes, as an external sort. The first parses blocks of the sources, filters their rows and
writes each block's rows to a file, partitioned by the id of their content. The second takes a
partition from all of those files at a time: equal ids meet there, so that duplicates are dropped,
the rest is rendered, tokenized and written in the order of the ids. Blocks and partitions are
independent, so processes share them; what is written does not depend on how many there are.
"""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.data import files
from loradag.data.dropped import Dropped
from loradag.data.near_duplicates import find_near_duplicates
from loradag.data.origins import Source
from loradag.data.passes import (
    PARTITIONS,
    TASK_ROWS,
    Parsed,
    Passes,
    Shaped,
    column,
    lowest_ids,
)
from loradag.data.rows import open_writer
from loradag.data.selection import SPLITS, sample
from loradag.data.shapes import DroppedError, Shape, detect_format
from loradag.data.sources import Block, Fields, read_blocks, rows_of
from loradag.data.templates import Template
from loradag.data.transform import Transform
from loradag.data.workers import Workers

if TYPE_CHECKING:
    import numpy as np

# Below this, starting processes takes longer than they save.
PARALLEL_BYTES = 16 * 2**20


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
    # By source and file.
    shapes: dict[tuple[int, str], Shape] = field(default_factory=dict)
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
    states = files.file_states(sources)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        parts = _parts(_shaped(prepare, sources, done.shapes))
        first = _up_to(parts, PARALLEL_BYTES)
        is_large = sum(map(_size, first)) >= PARALLEL_BYTES
        work = Passes(prepare, tokenizer, Path(name), is_large)
        with Workers(work, processes if is_large else 1) as run:
            parsed = _parse(chain(first, parts), run, done, sources)
            _check_fields(done, prepare)
            _make(_tasks(parsed, sources, prepare), run, done, folder)
    if changed := dict(files.file_states(sources).items() ^ states.items()):
        raise LoradagError(
            f"prepare: {min(changed)} changed while it was read. Run the stage again once nothing "
            "writes to it."
        )
    done.check()
    return done


def row_template(prepare: Prepare, done: Prepared) -> Template:
    """How the first file's rows were rendered, for prompts to be rendered the same way."""
    shape = next(iter(done.shapes.values()))
    return Template(prepare.template, shape.prompt, shape.completion, prepare.date)


def _shaped(
    prepare: Prepare, sources: list[Source], shapes: dict[tuple[int, str], Shape]
) -> Iterator[Shaped]:
    """Blocks; into `shapes` the shape of each file, found in its first usable rows."""
    for index, source in enumerate(sources):
        for block in read_blocks(index, source):
            if (index, block.label) not in shapes and (shape := _detect(block, prepare)):
                shapes[index, block.label] = shape
            yield block, shapes.get((index, block.label))


def _parts(blocks: Iterator[Shaped]) -> Iterator[list[Shaped]]:
    """Blocks in a row of one source, together of the size of a large one: files may be small."""
    part: list[Shaped] = []
    size = 0
    for block, shape in blocks:
        if part and (size >= files.BLOCK_BYTES or part[0][0].source != block.source):
            yield part
            part, size = [], 0
        part.append((block, shape))
        size += block.size
    if part:
        yield part


def _up_to(parts: Iterator[list[Shaped]], size: int) -> list[list[Shaped]]:
    """The first parts, of `size` bytes or all that there are."""
    taken, total = [], 0
    for part in parts:
        taken.append(part)
        total += _size(part)
        if total >= size:
            break
    return taken


def _size(part: list[Shaped]) -> int:
    return sum(block.size for block, _ in part)


def _detect(block: Block, prepare: Prepare) -> Shape | None:
    """The shape of a block's rows; None: it has no row that can be read and is not filtered out.

    Raises:
        LoradagError: the rows have the fields of no format, or of one that the template is not for.
    """
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
    if not rows:
        return None
    shape = detect_format(rows, prepare)
    if shape is None:
        found = sorted({name for row in rows for name in row})
        raise LoradagError(
            f"prepare.format = 'auto': {block.label} has the fields {', '.join(found)}, "
            "which are no format's. Set prepare.format with prepare.fields, or prepare.prompt and "
            "prepare.completion; docs/data.md shows each."
        )
    if shape.is_dialogue and prepare.template != "chat":
        raise LoradagError(
            f"prepare.template = {prepare.template!r}: {block.label} has dialogues (format "
            f"{shape.format}), which a chat template renders. Set prepare.template=chat."
        )
    if shape.format == "text" and prepare.template == "chat":
        raise LoradagError(
            f"prepare.template = 'chat': {block.label} has texts, which have no turns. Set "
            "prepare.template=plain, or rendered where they have their special tokens already."
        )
    if shape.format == "alpaca" and prepare.template == "rendered":
        raise LoradagError(
            f"prepare.template = 'rendered': {block.label} has instructions (format alpaca), which "
            "are still to be rendered. Set prepare.template=chat or plain."
        )
    return shape


def _parse(
    parts: Iterable[list[Shaped]], run: Workers, done: Prepared, sources: list[Source]
) -> list[Parsed]:
    """The first pass."""
    from tqdm import tqdm

    found = []
    tasks = (
        (number, part, sources[part[0][0].source].is_held_out) for number, part in enumerate(parts)
    )
    with tqdm(unit="rows", desc="parse") as bar:
        for parsed in run.map("parse", tasks):
            found.append(parsed)
            done.rows_in[parsed.source] += parsed.rows_in
            done.dropped.merge(parsed.dropped)
            done.seen.setdefault(parsed.source, set()).update(parsed.seen)
            bar.update(parsed.rows_in)
    return found


def _check_fields(done: Prepared, prepare: Prepare) -> None:
    for (index, _), shape in done.shapes.items():
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
    excluded = _excluded(files, sources, prepare)
    rows = np.sum([one.rows for one in parsed], axis=0) if parsed else np.zeros(PARTITIONS)
    tasks: list[tuple[Any, ...]] = []
    begin, lowest = 0, lowest_ids()
    for end in range(1, PARTITIONS + 1):
        count = rows[begin:end].sum()
        if count >= TASK_ROWS or (end == PARTITIONS and count):
            chosen = []
            for ids in excluded:
                at = [*np.searchsorted(ids, lowest).tolist(), len(ids)]
                chosen.append(set(ids[at[begin] : at[end]].tolist()))
            tasks.append((len(tasks), files, range(begin, end), *chosen))
            begin = end
    return tasks


def _excluded(
    files: list[Path], sources: list[Source], prepare: Prepare
) -> "tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]":
    """The sorted ids of rows that are also held out, near duplicates, and outside of a sample."""
    import numpy as np

    none = np.zeros(0, np.uint64)
    weights = [source.weight for source in sources]
    is_sampled = prepare.max_rows is not None or any(weights)
    has_held_out = any(source.is_held_out for source in sources)
    if not files or not (has_held_out or is_sampled or prepare.near_duplicates):
        return none, none, none
    names = ["id", "held_out", "position", "source", "content"]
    table = _read_columns(files, names + ["signature"] * bool(prepare.near_duplicates))
    ids, held_out, positions, origins, contents = (column(table, name) for name in names)
    is_leaked = ~held_out & np.isin(contents, contents[held_out])
    leaked = np.unique(ids[is_leaked])
    order = np.lexsort((positions, ~held_out, ids))
    _, firsts = np.unique(ids[order], return_index=True)
    kept = order[firsts]
    kept = kept[~is_leaked[kept]]
    near = none
    if prepare.near_duplicates:
        preferred = kept[np.argsort(~held_out[kept], kind="stable")]  # held-out rows first
        chosen = table["signature"].take(preferred).to_pylist()
        near = find_near_duplicates(ids[preferred], chosen, prepare.near_duplicates)
        kept = kept[~np.isin(ids[kept], near)]
    kept = kept[~held_out[kept]]
    for at, source in enumerate(sources):
        if source.weight is not None and not (origins[kept] == at).any():
            raise LoradagError(
                f"prepare.mix: filters and deduplication leave no row of {source.name}, so none of "
                "the other sources is in proportion to it. Leave it out of the mix, or loosen the "
                "filters."
            )
    sampled = sample(ids[kept], origins[kept], weights, prepare.max_rows)
    return leaked, near, ids[kept][~sampled]


def _make(
    tasks: list[tuple[Any, ...]],
    run: Workers,
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


def _read_columns(files: list[Path], names: list[str]) -> Any:
    """Some columns of the blocks, all their rows."""
    import pyarrow as pa

    tables = []
    for file in files:
        with pa.OSFile(str(file)) as source, pa.ipc.open_file(source) as reader:
            tables.append(reader.read_all().select(names).combine_chunks())
    return pa.concat_tables(tables)
