"""A few rows as their tokens, for a page that shows which of them are trained."""

import json
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from loradag.data.rows import Row

ROWS = 3


def write_examples(path: Path, rows: Sequence[Row], tokenizer: Any) -> None:
    """Write the first rows as JSON: `tokens` (texts), `completion` and `assistant` (masks)."""
    found = [
        {
            "id": row.id,
            "tokens": token_texts(row, tokenizer),
            "completion": row.completion_mask,
            "assistant": row.assistant_mask,
        }
        for row in rows[:ROWS]
    ]
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def token_texts(row: Row, tokenizer: Any) -> list[str]:
    """The part of a row's text that each of its tokens covers.

    Of a letter that is several tokens, the first has all of it. A BOS or EOS that the row's text
    does not spell is shown by its name.
    """
    content = row.text.encode()
    bounds = pairwise(accumulate(row.token_bytes, initial=0))
    texts = [content[begin:end].decode(errors="replace") for begin, end in bounds]
    added = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    return [
        tokenizer.convert_ids_to_tokens(id) if not text and id in added else text
        for text, id in zip(texts, row.input_ids, strict=True)
    ]
