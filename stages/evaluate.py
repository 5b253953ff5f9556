"""Measure perplexity and greedy samples of the tuned model on held-out rows, against its base.

Reads `data/prepared`, `artifacts/base`, `artifacts/quantized`, `artifacts/adapter` and
`artifacts/baseline.json`; writes only its report.
"""

import json
from typing import cast

from loradag.config.evaluate import Evaluate
from loradag.runtime import Paths, run_stage
from loradag.runtime.report_keys import EvaluateReport, Sample


def evaluate(paths: Paths, evaluate: Evaluate) -> EvaluateReport:
    from loradag.data.rows import read_rows
    from loradag.data.token_contract import read_contract, verify_tokenizer
    from loradag.evaluation.held_out import HeldOut
    from loradag.evaluation.measures import compare, measure
    from loradag.models.device import compute_dtype
    from loradag.models.loading import load_quantized, load_tuned
    from loradag.models.precision import verify_dtype
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    held_out = HeldOut(tokenizer, read_rows(paths.prepared / "eval.parquet"), evaluate)
    baseline = json.loads(paths.baseline.read_text(encoding="utf-8"))

    dtype = compute_dtype(evaluate.dtype)

    model = load_tuned(paths, load_quantized(paths, dtype))
    adapter, samples = measure(model, held_out, evaluate), held_out.sample(model)
    compared = zip(held_out.prompts, baseline["samples"], samples, strict=True)
    ended = [sample["ended"] for sample in samples]
    report = {
        **compare({**baseline["models"], "adapter": adapter}),
        "samples": [
            Sample(prompt=prompt, base=before["text"], adapter=after["text"])
            for prompt, before, after in compared
        ],
        "ended_fraction": sum(ended) / len(ended) if ended else None,
        "dtype": verify_dtype(model, dtype),
    }
    return cast(EvaluateReport, report)


if __name__ == "__main__":
    run_stage(evaluate)
