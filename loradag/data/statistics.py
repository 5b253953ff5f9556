"""What the prepared rows amount to, in tokens."""

import statistics

from loradag.data.rows import Row
from loradag.runtime.report_keys import TokenCounts, TokenLength


def count_tokens(splits: dict[str, list[Row]]) -> TokenCounts:
    """Tokens of the splits; of the train tokens, the share that completion-only loss trains on."""
    tokens = {name: sum(len(row.input_ids) for row in rows) for name, rows in splits.items()}
    completion = sum(sum(row.completion_mask) for row in splits["train"])
    return {
        "train_tokens": tokens["train"],
        "eval_tokens": tokens["eval"],
        "trained_token_fraction": round(completion / tokens["train"], 6),
    }


def token_lengths(rows: list[Row]) -> TokenLength:
    """Quantiles of the rows' lengths in tokens, and a histogram of 20 equal bins."""
    lengths = sorted(len(row.input_ids) for row in rows)
    centiles = statistics.quantiles(lengths, n=100, method="inclusive") if lengths[1:] else lengths
    width = max(1, -(-lengths[-1] // 20))
    counts = [0] * (lengths[-1] // width + 1)
    for length in lengths:
        counts[length // width] += 1
    return {
        "p50": round(centiles[len(centiles) // 2], 2),
        "p95": round(centiles[int(len(centiles) * 0.95)], 2),
        "max": lengths[-1],
        "histogram": {"width": width, "counts": counts},
    }
