"""The section `prepare`."""

from dataclasses import dataclass

from omegaconf import MISSING

from loradag.config.rules import (
    at_least,
    format_string,
    fraction,
    one_of,
)


@dataclass
class Prepare:
    """Rows in, token ids out: source, filter, split, template."""

    source: str = one_of("quotes", "glosses", "hub", "file")
    id: str | None = MISSING  # hub dataset
    revision: str | None = MISSING
    path: str | None = MISSING  # file: .jsonl, .json, .csv, .parquet or .txt
    split: str = MISSING
    license: str | None = MISSING  # for the model card
    # plain: prompt + completion + EOS; chat: both as turns of the tokenizer's chat template;
    # rendered: the completion is a whole text with its special tokens, never rendered again.
    template: str = one_of("plain", "chat", "rendered")
    prompt: str = format_string()  # format string over the row's fields
    completion: str = format_string()  # format string over the row's fields
    unique: list[str] = MISSING  # fields whose normalised text must not recur
    min_characters: int = at_least(0)
    max_characters: int | None = at_least(1)
    max_rows: int | None = at_least(1)  # after filter and dedupe; a sample by content hash
    max_tokens: int = at_least(8)
    overlong: str = one_of("drop", "truncate")
    eval_fraction: float = fraction()
    calibration_fraction: float = fraction()
    golden: list[str] = MISSING  # texts whose ids every tokenizer downstream is held to
