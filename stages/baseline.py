"""Measure what does not depend on the adapter: the base and the quantized base.

Reads `data/prepared`, `artifacts/base` and `artifacts/quantized`; writes `artifacts/baseline.json`,
which `evaluate` compares the tuned model with. So a sweep measures it once per quant type, not
once per job.
"""

from typing import cast

from loradag.config.evaluate import Evaluate
from loradag.runtime import Paths, run_stage, write_json
from loradag.runtime.report_keys import BaselineReport


def baseline(paths: Paths, evaluate: Evaluate) -> BaselineReport:
    from loradag.data.rows import read_rows
    from loradag.data.token_contract import read_contract, verify_tokenizer
    from loradag.evaluation.held_out import HeldOut
    from loradag.evaluation.measures import compare, measure
    from loradag.models.device import compute_dtype
    from loradag.models.loading import is_quantized, load_base, load_quantized
    from loradag.models.precision import verify_dtype
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    held_out = HeldOut(tokenizer, read_rows(paths.prepared / "eval.parquet"), evaluate)
    dtype = compute_dtype(evaluate.dtype)

    model = load_base(paths, dtype)
    base, samples = measure(model, held_out, evaluate), held_out.sample(model)
    quantized = base
    if is_quantized(paths):
        model = load_quantized(paths, dtype)
        quantized = measure(model, held_out, evaluate)
    measured = {"base": base, "quantized": quantized}
    write_json(paths.baseline, {"models": measured, "samples": samples})
    report = {**compare(measured), "dtype": verify_dtype(model, dtype)}
    return cast(BaselineReport, report)


if __name__ == "__main__":
    run_stage(baseline)
