"""Perplexity on general text, outside the tuning data: what the tuning cost there.

A model that is tuned on one kind of text forgets others; the rise of this perplexity from the
base's measures how much.
"""

import heapq
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from loradag.config.evaluate import Evaluate, General
from loradag.config.problems import LoradagError
from loradag.data.content import content_id
from loradag.data.origins import list_sources
from loradag.data.sources import Unreadable, read_blocks, rows_of
from loradag.data.templates import encode_prompt
from loradag.evaluation.perplexity import score

# How a row of an embedded source reads as a text.
TEXTS = {"glosses": "{word}: {gloss}", "quotes": "{quote}"}


def measure_general(model: Any, tokenizer: Any, evaluate: Evaluate) -> dict[str, Any]:
    """Perplexity, NLL (nats a token) and tokens on the general text; empty where there is none."""
    if evaluate.general.source == "none":
        return {}
    scored = score(
        model,
        [encode_prompt(text, tokenizer) for text in general_texts(evaluate.general)],
        None,
        window=evaluate.window,
        stride=evaluate.stride,
        batch_tokens=evaluate.batch_tokens,
    )
    return {"perplexity": scored.perplexity, "nll": scored.nll, "tokens": scored.tokens}


def general_texts(general: General) -> list[str]:
    """`general.rows` distinct texts, the ones with the smallest hashes of their content.

    Raises:
        LoradagError: the source cannot be read, or has no such text.
    """
    chosen = heapq.nsmallest(general.rows, {(content_id([text]), text) for text in _texts(general)})
    if not chosen:
        raise LoradagError(
            f"evaluate.general.text = {general.text!r}: no row of {general.source} has its fields. "
            "Name fields of the rows."
        )
    return [text for _, text in chosen]


def _texts(general: General) -> Iterator[str]:
    template = general.text or TEXTS.get(general.source, "{text}")
    (source,) = list_sources(
        source=general.source, id=general.id, config=general.config, revision=general.revision,
        split=general.split, path=general.path,
    )  # fmt: skip
    for block in read_blocks(0, replace(source, key="evaluate.general.path")):
        for _, row in rows_of(block):
            if isinstance(row, Unreadable):
                continue
            try:
                text = template.format(**row)
                text.encode()
            except (KeyError, UnicodeEncodeError):  # without such a field, or not UTF-8
                continue
            yield text
