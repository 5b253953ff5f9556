"""Prepared rows as the trainer takes them: token ids and labels, mapped from a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from loradag.config.problems import LoradagError
from loradag.config.train import Train
from loradag.data.rows import Rows, read_rows
from loradag.evaluation.perplexity import check_scored
from loradag.runtime import Paths
from loradag.training.guards import IGNORED, check_labels

MASKS = {"completion": "completion_mask", "assistant": "assistant_mask"}


def training_rows(
    paths: Paths, train: Train, eos_token_id: int, folder: Path, machine: int
) -> tuple[Dataset, Dataset]:
    """The rows to train on and those to evaluate on, written to `folder`.

    Args:
        machine: the number of this machine, whose files are its own.

    Raises:
        LoradagError: labels that train nothing, no held-out rows, or no token to score in them.
    """
    held_out_rows = read_rows(paths.prepared / "eval.parquet")
    if not held_out_rows:
        raise LoradagError(
            "there are no held-out rows to evaluate the training on. Raise prepare.eval_fraction."
        )
    rows = labelled(
        read_rows(paths.prepared / "train.parquet"),
        train.loss,
        folder / f"rows-{machine}.arrow",
    )
    rows = first_rows(rows, train.max_rows)
    check_labels(label_batches(rows), train.loss, eos_token_id)
    held_out = labelled(held_out_rows, train.loss, folder / f"held_out-{machine}.arrow")
    held_out = first_rows(held_out, train.eval_rows)
    check_scored(np.asarray(labels) != IGNORED for labels in held_out["labels"])
    return rows, held_out


def labelled(rows: Rows, loss: str, file: Path) -> Dataset:
    """Rows as `input_ids` and `labels`, where tokens without loss are ignored.

    Written to `file` a row group at a time and mapped into memory from there, so that a million
    rows take no more of it than a thousand.
    """
    import pyarrow as pa

    columns = ["input_ids", *([MASKS[loss]] if loss in MASKS else [])]
    kind = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, kind) as writer:
        for table in rows.tables(*columns):
            ids = table["input_ids"].combine_chunks()
            labels = ids.values.to_numpy()
            if loss in MASKS:
                mask = table[MASKS[loss]].combine_chunks().values.to_numpy()
                labels = np.where(mask, labels, np.int32(IGNORED))
            lists = pa.ListArray.from_arrays(ids.offsets, pa.array(labels, pa.int32()))
            writer.write_table(pa.table([ids, lists], kind))
    return Dataset.from_file(str(file))


def first_rows(data: Dataset, count: int | None) -> Dataset:
    """The first `count` rows; None: all of them."""
    return data if count is None else data.select(range(min(count, len(data))))


def label_batches(data: Dataset) -> Iterator[Any]:
    """The labels of many rows at a time, one after the other in one array."""
    for batch in data.with_format("arrow").iter(1024):
        yield batch["labels"].combine_chunks().flatten().to_numpy()
