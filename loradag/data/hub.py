"""Data sets of the hub, at a commit."""

from collections.abc import Iterator
from typing import Any

from loradag.config.problems import LoradagError
from loradag.data.origins import OFFLINE, Source
from loradag.data.sources import BLOCK_ROWS


def load_split(source: Source) -> Iterator[Any]:
    """The rows of a split at the commit `source.revision`, as record batches.

    Raises:
        LoradagError: it cannot be loaded.
    """
    from datasets import load_dataset

    # datasets, huggingface_hub, pyarrow and pandas raise classes with no common root.
    try:
        rows = load_dataset(source.id, source.config, revision=source.revision, split=source.split)
    except Exception as error:
        root: BaseException = error
        while root.__cause__ or root.__context__:
            root = root.__cause__ or root.__context__  # type: ignore[assignment]
        raise LoradagError(
            f"prepare.id = {source.id!r}: {type(root).__name__}: {root}. Check id, config, "
            f"revision and split. Without the network, take {OFFLINE}."
        ) from error
    if not len(rows):
        raise LoradagError(f"prepare.id = {source.id!r}: the split {source.split} has no rows.")
    for table in rows.with_format("arrow").iter(batch_size=BLOCK_ROWS):
        yield from table.combine_chunks().to_batches()  # several, of more than 2 GB of text
