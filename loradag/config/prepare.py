"""The section `prepare`."""

import datetime
import math
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from loradag.config.rules import (
    Rule,
    at_least,
    format_string,
    fraction,
    one_of,
    rule_field,
)

FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "text")
# The keys of `prepare.fields`: fields by the names that the formats give them.
FIELDS = (
    "messages", "conversations", "role", "content", "from", "value", "tools",
    "instruction", "input", "output", "prompt", "completion", "text",
)  # fmt: skip
PACKAGED = ("quotes", "glosses")  # sources that packages carry
MIX_TEXTS = ("name", "source", "id", "config", "revision", "split")
MIX_KEYS = (*MIX_TEXTS, "weight", "path")


def _mapping() -> Any:
    text = "must map names of the formats to names of the rows"
    remedy = f"Keys: {', '.join(FIELDS)}; for example {{messages: dialogue}}."
    return rule_field(
        Rule(
            text,
            lambda v: (
                isinstance(v, dict)
                and set(v) <= set(FIELDS)
                and all(isinstance(f, str) for f in v.values())
            ),
            remedy,
        )
    )


def _is_paths(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(isinstance(path, str) and path for path in values)


def _paths() -> Any:
    remedy = "Name a file, a folder or a pattern, or a list of them."
    return rule_field(Rule("must be a path or a list of paths", _is_paths, remedy))


def _mix() -> Any:
    def is_source(item: Any) -> bool:
        if not isinstance(item, dict) or not set(item) <= set(MIX_KEYS):
            return False
        weight, path = item.get("weight", 1), item.get("path")
        return (
            isinstance(weight, int | float)
            and 0 < weight < math.inf
            and sum(item.get(key) is not None for key in ("source", "id", "path")) == 1
            and item.get("source") in (None, *PACKAGED)
            and (path is None or _is_paths(path))
            and all(item.get(key) is None or isinstance(item[key], str) for key in MIX_TEXTS)
        )

    text = "must be a list of sources, each with one of source, id and path, and a weight above 0"
    remedy = (
        f"Keys: {', '.join(MIX_KEYS)}; source is {' or '.join(PACKAGED)}; for example "
        "[{path: a.jsonl, weight: 2}, ...]."
    )

    def holds(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(map(is_source, value))

    return rule_field(Rule(text, holds, remedy))


def _date() -> Any:
    def holds(value: Any) -> bool:
        try:
            datetime.date.fromisoformat(value)
        except ValueError:
            return False
        return True

    return rule_field(Rule("must be a date", holds, "Write it as 2025-01-31."))


def _function() -> Any:
    def holds(value: Any) -> bool:
        file, _, function = value.rpartition(":")
        return bool(file.endswith(".py") and function.isidentifier())

    text = "must name a function of a Python file"
    return rule_field(Rule(text, holds, "For example my_rows.py:convert."))


@dataclass
class Prepare:
    """How rows become token ids: source, format, filters, splits, template."""

    source: str = one_of(*PACKAGED, "hub", "file", "mix")
    id: str | None = MISSING  # hub data set
    config: str | None = MISSING  # hub data set: one of its configurations
    revision: str | None = MISSING  # hub data set: branch, tag or commit
    # file: a file, a folder, a pattern or a list of them; jsonl, json, csv, parquet or txt, also
    # compressed.
    path: Any = _paths()
    split: str = MISSING  # hub data set
    mix: Any = _mix()  # mix: several sources by weight
    eval_path: Any = _paths()  # held-out rows of your own
    eval_split: str | None = MISSING  # held-out rows: another split of the hub data set
    license: str | None = MISSING  # for the model card
    format: str = one_of("auto", *FORMATS)  # auto: by the fields that the rows have
    fields: Any = _mapping()  # the rows' names of fields, where they differ from the format's
    transform: str | None = _function()  # FILE.py:FUNCTION, from a row to a row; None drops the row
    # plain: prompt + completion + EOS; chat: turns of the tokenizer's chat template;
    # rendered: the completion is a full text with its special tokens, never rendered again.
    template: str = one_of("plain", "chat", "rendered")
    prompt: str | None = format_string()  # with the row's fields; null: the default of the format
    completion: str | None = format_string()
    date: str = _date()  # what chat templates print instead of today's date
    # Fields whose normalized text must not recur; null: all texts of the row.
    unique: list[str] | None = MISSING
    near_duplicates: float | None = fraction()  # drop rows this similar (Jaccard of word 5-grams)
    min_characters: int = at_least(0)
    max_characters: int | None = at_least(1)
    max_rows: int | None = at_least(1)  # after filters and deduplication; sampled by content hash
    max_tokens: int = at_least(8)
    overlong: str = one_of("drop", "truncate")
    on_error: str = one_of("stop", "drop")  # at rows that cannot be read
    eval_fraction: float = fraction()
    calibration_fraction: float = fraction()
    golden: list[str] = MISSING  # texts on which every later tokenizer is verified
