"""The token contract: what every tokenizer and runtime downstream is verified against.

Made by `prepare` next to the rows; verified by `train`, `evaluate` and every export, so that a
template, a BOS or a pre-tokenizer that changed on the way cannot pass silently.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError
from loradag.data.rows import Row
from loradag.data.templates import Template, encode_prompt
from loradag.data.tokenization import encode_row

ROWS = 3


@dataclass(frozen=True)
class Golden:
    """A text, its ids with the special tokens that the tokenizer adds, their counts."""

    text: str
    ids: list[int]
    bos: int
    eos: int


@dataclass(frozen=True)
class Contract:
    """Special ids, the template, golden texts, and full rows with their masks."""

    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int
    template: Template
    golden: list[Golden]
    rows: list[Row]


def make_contract(
    tokenizer: Any, template: Template, texts: list[str], rows: Sequence[Row]
) -> Contract:
    """The contract of a tokenizer, with the first rows whose text alone gives their ids.

    A row whose own text spells a special token is not among them.
    """
    reproduced = (row for row in rows if _is_reproduced(row, tokenizer))
    return Contract(
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        template,
        [_golden(tokenizer, text) for text in texts],
        [row for row, _ in zip(reproduced, range(ROWS), strict=False)],
    )


def write_contract(path: Path, contract: Contract) -> None:
    text = json.dumps(asdict(contract), indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def read_contract(path: Path) -> Contract:
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["template"] = Template(**fields["template"])
    fields["golden"] = [Golden(**golden) for golden in fields["golden"]]
    fields["rows"] = [Row(**row) for row in fields["rows"]]
    return Contract(**fields)


def verify_tokenizer(tokenizer: Any, contract: Contract) -> None:
    """Check a tokenizer against the contract.

    Raises:
        LoradagError: naming every difference.
    """
    broken = [
        f"{name} is {getattr(tokenizer, name)}, not {getattr(contract, name)}"
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if getattr(tokenizer, name) != getattr(contract, name)
    ]
    for golden in contract.golden:
        ids = _golden(tokenizer, golden.text).ids
        if ids != golden.ids:
            broken.append(f"{golden.text!r} has the ids {ids}, not {golden.ids}")
    broken += [
        f"the row {row.id} is encoded otherwise than it was prepared"
        for row in contract.rows
        if not _is_reproduced(row, tokenizer)
    ]
    if broken:
        lines = "\n".join(f"  - {line}" for line in broken)
        raise LoradagError(f"the tokenizer breaks the token contract:\n{lines}")


def _is_reproduced(row: Row, tokenizer: Any) -> bool:
    ids, mask = encode_row(row.text, row.prompt, tokenizer)
    length = len(row.input_ids)
    return (ids[:length], mask[:length]) == (row.input_ids, row.completion_mask)


def _golden(tokenizer: Any, text: str) -> Golden:
    ids = encode_prompt(text, tokenizer)
    return Golden(text, ids, ids.count(tokenizer.bos_token_id), ids.count(tokenizer.eos_token_id))
