"""Perplexity of base, quantized base and adapter on held-out rows, and greedy samples of them.

Reads `data/prepared`, `artifacts/base`, `artifacts/quantized` and `artifacts/adapter`; writes
nothing but its report.
"""

from loradag.config.evaluate import Evaluate
from loradag.models.device import compute_dtype
from loradag.runtime import Paths, run_stage
from loradag.runtime.report_keys import EvaluateReport, Sample


def evaluate(paths: Paths, evaluate: Evaluate) -> EvaluateReport:
    from loradag.data.rows import read_rows
    from loradag.data.token_contract import read_contract, verify_tokenizer
    from loradag.evaluation.held_out import HeldOut
    from loradag.models.loading import is_quantized, load_base, load_quantized, load_tuned
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    held_out = HeldOut(tokenizer, read_rows(paths.prepared / "eval.parquet"), evaluate)
    dtype = compute_dtype(evaluate.dtype)

    model = load_base(paths, dtype)
    base, base_texts = held_out.measure(model), held_out.sample(model)
    if is_quantized(paths):
        model = load_quantized(paths, dtype)
    quantized = held_out.measure(model) if is_quantized(paths) else base
    model = load_tuned(paths, model)
    adapter, adapter_texts = held_out.measure(model), held_out.sample(model)
    texts = zip(held_out.prompts, base_texts, adapter_texts, strict=True)
    return {
        "base": base,
        "quantized": quantized,
        "adapter": adapter,
        "samples": [Sample(prompt=p, base=b, adapter=a) for p, b, a in texts],
    }


if __name__ == "__main__":
    run_stage(evaluate)
