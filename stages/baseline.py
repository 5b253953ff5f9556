"""What does not depend on the adapter: perplexity and samples of the base, quantized and not.

Reads `data/prepared`, `artifacts/base` and `artifacts/quantized`; writes `artifacts/baseline.json`,
which `evaluate` compares the adapter with. So a sweep measures it once a quant type, not once a
job.
"""

from loradag.config.evaluate import Evaluate
from loradag.runtime import Paths, run_stage, write_json
from loradag.runtime.report_keys import BaselineReport, BaselineScores


def baseline(paths: Paths, evaluate: Evaluate) -> BaselineReport:
    from loradag.data.rows import read_rows
    from loradag.data.token_contract import read_contract, verify_tokenizer
    from loradag.evaluation.held_out import HeldOut
    from loradag.evaluation.tasks import score_tasks
    from loradag.models.device import compute_dtype
    from loradag.models.loading import is_quantized, load_base, load_quantized
    from loradag.models.precision import verify_dtype
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    held_out = HeldOut(tokenizer, read_rows(paths.prepared / "eval.parquet"), evaluate)
    dtype = compute_dtype(evaluate.dtype)

    model = load_base(paths, dtype)
    base, samples = held_out.measure(model), held_out.sample(model)
    tasks = BaselineScores(base=score_tasks(model, tokenizer, evaluate))
    if is_quantized(paths):
        model = load_quantized(paths, dtype)
        tasks["quantized"] = score_tasks(model, tokenizer, evaluate)
    computed = verify_dtype(model, dtype)
    quantized = held_out.measure(model) if is_quantized(paths) else base
    report = BaselineReport(base=base, quantized=quantized, dtype=computed)
    if evaluate.tasks:
        report["tasks"] = tasks
    write_json(paths.baseline, {**report, "samples": samples})
    return report


if __name__ == "__main__":
    run_stage(baseline)
