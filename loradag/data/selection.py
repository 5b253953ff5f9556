"""Which rows are kept: by content, whatever the order of the source and its other rows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loradag.config.prepare import Prepare
from loradag.data.content import content_id, hash_of
from loradag.data.shapes import DroppedError, Example
from loradag.data.sources import Fields

if TYPE_CHECKING:
    import numpy as np

SPLITS = ("train", "eval", "calibration")


def split_of(id: str, prepare: Prepare) -> str:
    """The split that a content falls into, whatever other rows there are.

    Where held-out rows are named, no other row is held out.
    """
    place = int(id, 16) / 2**64
    if place < prepare.calibration_fraction:
        return "calibration"
    own = bool(prepare.eval_path or prepare.eval_split)
    eval_fraction = 0.0 if own else prepare.eval_fraction
    return "eval" if place < prepare.calibration_fraction + eval_fraction else "train"


@dataclass(frozen=True)
class Identity:
    """Three hashes of a row.

    Attributes:
        id: of all of it, or of the fields `prepare.unique`: equal ids are kept once.
        content: of its texts up to case, punctuation, spacing and Unicode form, or of the fields
            `prepare.unique`: a row that has it in common with a held-out row is not trained on.
        opening: of what it answers, up to the same: it decides on the split, so that two answers
            to one question are never on two sides.
    """

    id: str
    content: str
    opening: str


def identify(row: Fields, example: Example, prepare: Prepare) -> Identity:
    """The hashes of a row.

    Raises:
        DroppedError: a field of `prepare.unique` is empty.
    """
    opening = content_id(example.opening or example.texts)
    if not prepare.unique:
        return Identity(hash_of(example.serialized), content_id(example.texts), opening)
    for name in prepare.unique:
        if row.get(name) in (None, ""):
            raise DroppedError(f"no_{name}", f"nothing in the field {name!r}")
    id = content_id(str(row[name]) for name in prepare.unique)
    return Identity(id, id, opening)


def check_length(example: Example, prepare: Prepare) -> None:
    """Refuse an example with too few or too many characters.

    Raises:
        DroppedError: with the reason.
    """
    characters = sum(map(len, example.texts))
    if characters < prepare.min_characters:
        raise DroppedError("too_short")
    if prepare.max_characters is not None and characters > prepare.max_characters:
        raise DroppedError("too_long")


def sample(
    ids: "np.ndarray[Any, Any]",
    sources: "np.ndarray[Any, Any]",
    weights: list[float | None],
    max_rows: int | None,
) -> "np.ndarray[Any, Any]":
    """Which of the distinct `ids` (uint64) to keep: a boolean mask.

    Each source keeps its rows with the smallest hashes. With weights, as many as keep the sources
    in proportion to them: the first that runs out of rows limits the others.

    Args:
        ids: (rows,).
        sources: (rows,), index of each row's source.
        weights: by source; None: no limit but `max_rows`.
        max_rows: over all sources.
    """
    import numpy as np

    keep = np.ones(len(ids), bool)
    mixed = [at for at, weight in enumerate(weights) if weight is not None]
    if mixed:
        counts = {at: int((sources == at).sum()) for at in mixed}
        share = min(counts[at] / float(weights[at] or 1) for at in mixed)
        if max_rows is not None:
            share = min(share, max_rows / sum(float(weights[at] or 1) for at in mixed))
        for at in mixed:
            places = np.flatnonzero(sources == at)
            keep[_largest(ids, places, int(share * float(weights[at] or 1)))] = False
    elif max_rows is not None:
        keep[_largest(ids, np.arange(len(ids)), max_rows)] = False
    return keep


def _largest(
    ids: "np.ndarray[Any, Any]", places: "np.ndarray[Any, Any]", count: int
) -> "np.ndarray[Any, Any]":
    """Those of `places` that are beyond the `count` smallest hashes of their ids."""
    import numpy as np

    if count >= len(places):
        return places[:0]
    keys = [content_id([f"sample {id:016x}"]) for id in ids[places].tolist()]
    return places[np.argsort(np.array(keys), kind="stable")[count:]]
