"""Verify that a merged model computes what was trained.

Two comparisons, since two things can go wrong:

- with the model as trained (quantized base, unmerged adapter). `merge.base=original` adds to W an
  update that was trained against dequant(quant(W)), so there they differ by the quantisation's
  error; `merge.tolerance.kl` and `.perplexity` bound it.
- with the very weights that were merged into, and peft's unmerged adapter: there only the
  rounding to the merged dtype may differ. `merge.tolerance.rounding` bounds that over the whole
  model, and a bound from the dtype over every adapted layer by itself.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from loradag.checkpoints.model_files import copy_all_but_weights
from loradag.checkpoints.safetensors_reader import DTYPES, FLOATS, read_entries
from loradag.checkpoints.safetensors_writer import AppendingWriter
from loradag.config.merge import Merge, Tolerance
from loradag.config.problems import LoradagError
from loradag.data.rows import read_rows
from loradag.data.templates import encode_prompt
from loradag.data.token_contract import read_contract, verify_tokenizer
from loradag.evaluation.parity import (
    Parity,
    Probe,
    compare,
    comparison_dtype,
    record,
)
from loradag.merging.layers import largest_error, layer_outputs, rounding_bound
from loradag.merging.merged_model import float_weights
from loradag.models.loading import (
    is_adapter,
    is_quantized,
    load_base,
    load_model,
    load_quantized,
    load_tuned,
)
from loradag.models.precision import verify_dtype
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from loradag.runtime.report_keys import MergeChecks

if TYPE_CHECKING:
    import torch

ROUNDING_ROWS = 4  # wrong arithmetic shows on every token
PROMPTS = 4  # of rows, for greedy text


def verify_merge(paths: Paths, merged: Path, merge: Merge) -> MergeChecks:
    """Compare the model in the folder `merged` with the trained one; return the report's numbers.

    Raises:
        LoradagError: past a tolerance, the trained model is of no use, or the tokenizer breaks the
            token contract.
    """
    contract = read_contract(paths.contract)
    tokenizer = load_tokenizer(merged)
    verify_tokenizer(tokenizer, contract)
    rows = read_rows(paths.prepared / "eval.parquet")[: merge.rows]
    texts = [golden.ids for golden in contract.golden if golden.ids]
    prompts = [encode_prompt(row.prompt, tokenizer) for row in rows[:PROMPTS]]
    ids = [row.input_ids for row in rows]
    probe = Probe(ids, texts, prompts, merge.max_new_tokens)
    brief = Probe(ids[:ROUNDING_ROWS], texts, [], 0)
    dtype = comparison_dtype(merged)

    paths.state.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=paths.state, prefix="parity-") as scratch:
        trained, unmerged = Path(scratch) / "trained", Path(scratch) / "unmerged"
        model = load_tuned(paths, load_quantized(paths, dtype))
        greedy = record(model, probe, trained)
        outputs = {}
        if is_adapter(paths):
            if is_quantized(paths):
                del model  # before the next is loaded
                model = _unmerged(paths, merge.base, dtype, Path(scratch))
            record(model, brief, unmerged)
            outputs = layer_outputs(model)
        del model
        model = load_model(merged, dtype)
        parity = compare(model, probe, trained, greedy)
        _check_use(parity, model.get_input_embeddings().weight.shape[0])
        report = {**asdict(parity), "dtype": verify_dtype(model, dtype)}
        checks = _checks(parity, merge.tolerance)
        if outputs:
            exact = compare(model, brief, unmerged, [])
            name, error = largest_error(model, outputs)
            bound = rounding_bound(_stored_dtypes(merged), dtype)
            checks = _exact_checks(exact, merge.tolerance, name, error, bound) + checks
            report |= {"rounding_kl": exact.mean_kl, "largest_layer_error": error}
    _verify(checks, parity, merge)
    return cast(MergeChecks, {**report, "passed": True})


def _check_use(parity: Parity, vocabulary: int) -> None:
    """Refuse a trained model whose NLL is beyond twice that of a uniform guess, ln(vocabulary)."""
    if not parity.perplexity_before <= vocabulary**2:  # also where it is not a number
        raise LoradagError(
            f"the trained model is of no use: its perplexity on held-out rows is "
            f"{parity.perplexity_before:.4g}, where a uniform guess among all tokens has "
            f"{vocabulary}. Lower train.learning_rate."
        )


def _unmerged(paths: Paths, base: str, dtype: torch.dtype, scratch: Path) -> Any:
    """The weights that were merged into, with peft's unmerged adapter.

    Args:
        scratch: a folder, for weights that no stage has written.
    """
    weights = float_weights(paths, base)
    if weights is None:
        return load_tuned(paths, load_base(paths, dtype))
    folder = scratch / "dequantized"
    folder.mkdir()
    copy_all_but_weights(paths.base, folder)
    with AppendingWriter(folder) as writer:
        for name, weight in weights:
            writer.write(name, weight)
    return load_tuned(paths, load_model(folder, dtype))


def _stored_dtypes(folder: Path) -> list[torch.dtype]:
    import torch

    stored = {entry.dtype for entry in read_entries(folder).values()} & set(FLOATS)
    return [getattr(torch, DTYPES[name][0]) for name in sorted(stored)]


@dataclass(frozen=True)
class Check:
    """An amount, the most that it may be, and what to do past that."""

    what: str
    value: float
    limit: str
    at_most: float
    remedy: str


def _exact_checks(
    exact: Parity, tolerance: Tolerance, layer: str, error: float, bound: float
) -> list[Check]:
    remedy = "The merge does not compute W + scale·B·A: please report it."
    return [
        Check(f"relative error of {layer}", error, "what rounding explains", bound, remedy),
        Check(
            "mean KL to the same base with the unmerged adapter",
            exact.mean_kl,
            "merge.tolerance.rounding",
            tolerance.rounding,
            "Set merge.dtype=float32, or raise the tolerance.",
        ),
    ]


def _checks(parity: Parity, tolerance: Tolerance) -> list[Check]:
    remedy = "Set merge.base=dequantized, or raise the tolerance."
    return [
        Check(
            "mean KL to the model as trained",
            parity.mean_kl,
            "merge.tolerance.kl",
            tolerance.kl,
            remedy,
        ),
        Check(
            "relative rise of perplexity",  # into a better base than training saw it falls
            parity.perplexity_rise,
            "merge.tolerance.perplexity",
            tolerance.perplexity,
            remedy,
        ),
    ]


def _verify(checks: list[Check], parity: Parity, merge: Merge) -> None:
    failed = [
        f"  - {check.what} is {check.value:.3g}, over {check.limit} = {check.at_most:.3g}. "
        f"{check.remedy}"
        for check in checks
        if not check.value <= check.at_most  # also where it is not a number
    ]
    if failed:
        lines = "\n".join(failed)
        raise LoradagError(
            f"the merged model (merge.base = {merge.base}) is not the trained one:\n{lines}\n"
            f"  perplexity {parity.perplexity_before:.4g} before, {parity.perplexity_after:.4g} "
            f"after; largest logit difference {parity.max_abs_logit_diff:.3g}; greedy text agrees "
            f"for {parity.greedy_match:.0%}"
        )
