"""Prepared rows: filtered, split by content, encoded; written to and read from parquet."""

from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One example.

    Attributes:
        id: hash of its content.
        text: rendered prompt and completion.
        prompt: the rendered part that the model goes on from.
        input_ids: token ids, with BOS and EOS.
        completion_mask: 1 where a token belongs to the completion or is its EOS.
    """

    id: str
    text: str
    prompt: str
    input_ids: list[int]
    completion_mask: list[int]


def write_rows(path: Path, rows: list[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "id": pa.string(),
            "text": pa.string(),
            "prompt": pa.string(),
            "input_ids": pa.list_(pa.int32()),
            "completion_mask": pa.list_(pa.int8()),
        }
    )
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in rows], schema), path)


def read_rows(path: Path) -> list[Row]:
    import pyarrow.parquet as pq

    return [Row(**fields) for fields in pq.read_table(path).to_pylist()]
