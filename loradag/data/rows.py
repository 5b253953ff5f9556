"""Prepared rows: parquet files that are read row by row, or mapped into memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        id: hash of its content.
        text: all of it, rendered.
        prompt: the rendered part that the model is to continue.
        input_ids: token ids, with BOS and EOS.
        completion_mask: 1 where a token belongs to the last turn of the assistant or is its EOS.
        assistant_mask: 1 where a token belongs to any turn of the assistant.
        token_bytes: UTF-8 bytes of the text that each token covers.
    """

    id: str
    text: str
    prompt: str
    input_ids: list[int]
    completion_mask: list[int]
    assistant_mask: list[int]
    token_bytes: list[int]


def schema() -> Any:
    import pyarrow as pa

    return pa.schema(
        {
            "id": pa.string(),
            "text": pa.string(),
            "prompt": pa.string(),
            "input_ids": pa.list_(pa.int32()),
            "completion_mask": pa.list_(pa.int8()),
            "assistant_mask": pa.list_(pa.int8()),
            "token_bytes": pa.list_(pa.int32()),
        }
    )


def open_writer(path: Path) -> Any:
    """A writer of tables of `schema()`; the same tables make the same bytes."""
    import pyarrow.parquet as pq

    return pq.ParquetWriter(path, schema(), compression="zstd", compression_level=1)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow as pa

    with open_writer(path) as writer:
        writer.write_table(pa.Table.from_pylist([vars(row) for row in rows], schema()))


class Rows(Sequence[Row]):
    """The rows of a parquet file, read when they are asked for: a row group is in memory."""

    def __init__(self, path: Path) -> None:
        import numpy as np
        import pyarrow.parquet as pq

        self.path = path
        self.file = pq.ParquetFile(path, memory_map=True)
        metadata = self.file.metadata
        sizes = [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
        self._group = lru_cache(maxsize=2)(self._read_group)

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        import numpy as np

        if isinstance(at, slice):
            return [self[place] for place in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        at %= len(self)
        group = int(np.searchsorted(self.starts, at, side="right")) - 1
        return self._group(group)[at - int(self.starts[group])]

    def _read_group(self, group: int) -> list[Row]:
        return [Row(**found) for found in self.file.read_row_group(group).to_pylist()]

    def tables(self, *columns: str) -> Iterator[Any]:
        """The named columns as Arrow tables, a row group at a time."""
        for group in range(len(self.starts) - 1):
            yield self.file.read_row_group(group, columns=list(columns))

    def map_columns(self, file: Path, *columns: str) -> list[list["np.ndarray[Any, Any]"]]:
        """Columns of lists, an array a row, that are read from disk where they are used.

        Args:
            file: to write them to, uncompressed, a row group at a time.
        """
        import pyarrow as pa

        kind = pa.schema([schema().field(name) for name in columns])
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, kind) as writer:
            for table in self.tables(*columns):
                writer.write_table(table)
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        return [
            [
                values[begin:end]
                for chunk in table[name].chunks
                for values in [chunk.values.to_numpy()]
                for begin, end in pairwise(chunk.offsets.to_pylist())
            ]
            for name in columns
        ]


def read_rows(path: Path) -> Rows:
    return Rows(path)
