"""What the prepared rows amount to: tokens, lengths, leakage."""

from typing import TYPE_CHECKING, Any

from loradag.data.origins import Source
from loradag.data.preparation import Prepared
from loradag.runtime.report_keys import PreparedRows, TokenLength

if TYPE_CHECKING:
    import numpy as np


def summarize(done: Prepared, sources: list[Source]) -> PreparedRows:
    """The report of the stage `prepare`; counts and places of rows, and none of their texts."""
    import numpy as np

    tokens = done.tokens
    places = done.dropped.places | done.truncated.places
    return {
        "rows_in": done.rows_in.total(),
        "rows_kept": done.kept.total(),
        "dropped": dict(sorted(done.dropped.counts.items())),
        "first_dropped": {
            reason: [place for _, place in found] for reason, found in sorted(places.items())
        },
        "sources": {
            source.name: {
                "format": formats(done, index),
                "rows_in": done.rows_in[index],
                "rows_kept": done.kept[index],
            }
            for index, source in enumerate(sources)
        },
        "train_rows": done.split_rows["train"],
        "eval_rows": done.split_rows["eval"],
        "calibration_rows": done.split_rows["calibration"],
        "train_tokens": tokens["train"],
        "eval_tokens": tokens["eval"],
        "trained_token_fraction": round(tokens["completion"] / tokens["train"], 6),
        "assistant_token_fraction": round(tokens["assistant"] / tokens["train"], 6),
        "truncated_rows": done.truncated.counts.total(),
        "leaked_prompts": leaked_prompts(done),
        "token_length": token_lengths(np.concatenate(done.lengths)),
    }


def formats(done: Prepared, source: int) -> str:
    """The formats of a source's files."""
    found = {shape.format for (index, _), shape in done.shapes.items() if index == source}
    return ", ".join(sorted(found)) or "none"


def leaked_prompts(done: Prepared) -> int:
    """Held-out rows whose prompt is also the prompt of a row that is trained on."""
    import numpy as np

    held_out, trained = (np.concatenate(done.openings[split]) for split in ("eval", "train"))
    return int(np.isin(held_out, trained).sum())


def token_lengths(lengths: "np.ndarray[Any, Any]") -> TokenLength:
    """Quantiles of the rows' lengths in tokens, and a histogram of 20 equal bins."""
    import numpy as np

    longest = int(lengths.max())
    width = max(1, -(-longest // 20))
    return {
        "p50": round(float(np.percentile(lengths, 50)), 2),
        "p95": round(float(np.percentile(lengths, 95)), 2),
        "max": longest,
        "histogram": {"width": width, "counts": np.bincount(lengths // width).tolist()},
    }
