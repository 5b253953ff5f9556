"""From the rows of a source to prepared rows: filter, deduplicate, split by content, encode."""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from loradag.config.prepare import Prepare
from loradag.config.problems import LoradagError
from loradag.data.rows import Row
from loradag.data.sources import Fields
from loradag.data.templates import Template, encode, render

SPLITS = ("train", "eval", "calibration")


def select(
    source: Iterable[Fields], prepare: Prepare, template: Template, dropped: Counter[str]
) -> dict[str, Fields]:
    """Complete, fitting, distinct rows by id, sorted; the reasons of the others into `dropped`.

    Raises:
        LoradagError: the format strings name a field that no row has.
    """
    kept: dict[str, Fields] = {}
    seen: set[str] = set()
    for fields in source:
        seen |= fields.keys()
        missing = [name for name in template.fields if not str(fields.get(name) or "").strip()]
        characters = sum(len(str(fields.get(name, ""))) for name in template.fields)
        if missing:
            dropped[f"no_{missing[0]}"] += 1
        elif characters < prepare.min_characters:
            dropped["too_short"] += 1
        elif prepare.max_characters is not None and characters > prepare.max_characters:
            dropped["too_long"] += 1
        else:
            id = content_id(str(fields[name]) for name in prepare.unique)
            dropped["duplicate"] += id in kept
            kept.setdefault(id, fields)
    for name in [*template.fields, *prepare.unique]:
        if seen and name not in seen:
            raise LoradagError(
                f"prepare: no row has the field {name!r}. There are: {', '.join(sorted(seen))}. "
                "Mend prepare.prompt, prepare.completion or prepare.unique."
            )
    if prepare.max_rows is not None and len(kept) > prepare.max_rows:
        sample = sorted(kept, key=lambda id: content_id([f"sample {id}"]))[: prepare.max_rows]
        dropped["over_max_rows"] = len(kept) - prepare.max_rows
        kept = {id: kept[id] for id in sample}
    return dict(sorted(kept.items()))


def content_id(texts: Iterable[str]) -> str:
    """Hash of texts up to case, punctuation, spacing and Unicode form: 64 bits in hex."""
    normal = [
        re.sub(r"\W+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()
        for text in texts
    ]
    return hashlib.sha256("\n".join(normal).encode()).hexdigest()[:16]


def split_of(id: str, prepare: Prepare) -> str:
    """The split that a content falls into, whatever other rows there are."""
    place = int(id, 16) / 2**64
    if place < prepare.calibration_fraction:
        return "calibration"
    return "eval" if place < prepare.calibration_fraction + prepare.eval_fraction else "train"


def encode_rows(selected: dict[str, Fields], template: Template, tokenizer: Any) -> Iterator[Row]:
    for id, fields in selected.items():
        prompt, completion = render(template, fields, tokenizer)
        ids, mask = encode(prompt, completion, tokenizer)
        yield Row(id, prompt + completion, prompt, ids, mask)


def truncated(row: Row, max_tokens: int) -> Row:
    return Row(
        row.id, row.text, row.prompt, row.input_ids[:max_tokens], row.completion_mask[:max_tokens]
    )
