"""The proof that what is exported computes what was merged, in the runtime that will run it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from loradag.config.export import Export
from loradag.config.problems import LoradagError
from loradag.data.rows import read_rows
from loradag.data.templates import encode_prompt
from loradag.data.token_contract import Contract, read_contract, verify_tokenizer
from loradag.evaluation.parity import comparison_dtype, greedy_match
from loradag.export.gguf_format import round_weights
from loradag.export.measurement import QUESTION, Finding, Trial, find_in_transformers
from loradag.export.runtimes import (
    find_in_adapter,
    find_in_folder,
    find_in_llamacpp,
    in_fresh_process,
)
from loradag.models.loading import load_base, load_model, load_tuned
from loradag.models.pinning import weights_folder
from loradag.models.tokenizer import load_tokenizer
from loradag.quantization.lattice import read_grid
from loradag.runtime import Paths
from loradag.runtime.environment import threads
from loradag.runtime.report_keys import ExportedFormat

LONGEST = 256  # tokens of a row: llama.cpp is asked for each by itself
PROMPTS = 2  # of rows, for greedy text
GGUF = "gguf_"
LLAMACPP = "xllamacpp"


def prove(paths: Paths, exported: dict[str, Path], export: Export) -> dict[str, ExportedFormat]:
    """Hold every format to the merged model; return the report's numbers by format.

    A format may lose what its rounding loses, which is measured in transformers; an adapter is held
    to itself on the full-precision base. Perplexity beyond that by `export.tolerance` is an error,
    and so is any other token id or chat template.

    Args:
        exported: each format's name, and the file or folder that a runtime loads.

    Raises:
        LoradagError: naming every format and what it does otherwise.
    """
    contract = read_contract(paths.contract)
    tokenizer = load_tokenizer(paths.merged)
    verify_tokenizer(tokenizer, contract)
    trial = _trial(paths, contract, tokenizer, export)
    merged = find_in_transformers(
        load_model(paths.merged, comparison_dtype(paths.merged)), tokenizer, trial, ""
    )
    numbers: dict[str, ExportedFormat] = {}
    problems: list[str] = []
    for name, path in exported.items():
        expected = _expected_perplexity(paths, name, trial, tokenizer) or merged.perplexity
        if name.startswith(GGUF):
            found = in_fresh_process(find_in_llamacpp, str(path), trial)
        elif name == "adapter":
            base = str(weights_folder(paths.base))
            found = in_fresh_process(find_in_adapter, str(path), base, trial)
        else:
            found = in_fresh_process(find_in_folder, str(path), trial)
        wrong = _differences(found, expected, merged.opening, tokenizer, contract, export.tolerance)
        problems += [f"  - {name}: {problem}" for problem in wrong]
        numbers[name] = {
            "runtime": found.runtime,
            "perplexity": found.perplexity,
            "expected_perplexity": expected,
            "merged_perplexity": merged.perplexity,
            "token_ids_match": found.token_ids == [golden.ids for golden in contract.golden],
            "greedy_match": greedy_match(
                *(_without_eos(said.greedy, contract) for said in (merged, found))
            ),
            "tokens_per_second": round(found.tokens_per_second, 2),
        }
    if problems:
        raise LoradagError("\n".join(["an export is not the merged model:", *problems]))
    return numbers


def _expected_perplexity(paths: Paths, name: str, trial: Trial, tokenizer: Any) -> float | None:
    """What the format `name` should come to, measured here; None: what the merged model does."""
    if name.startswith(GGUF):
        model = load_model(paths.merged, comparison_dtype(paths.merged))
        round_weights(model, name.removeprefix(GGUF), read_grid(paths.merged))
    elif name == "adapter":
        # It stands on the full-precision base; how far that is from the quantised one that it was
        # trained on, and maybe merged into, is the merge's to say.
        model = load_tuned(paths, load_base(paths, comparison_dtype(paths.merged)))
    else:
        return None
    brief = dataclasses.replace(trial, prompts=[])
    return find_in_transformers(model, tokenizer, brief, "").perplexity


def _trial(paths: Paths, contract: Contract, tokenizer: Any, export: Export) -> Trial:
    rows = read_rows(paths.prepared / "eval.parquet")[: export.rows]
    prompts = [encode_prompt(row.prompt, tokenizer) for row in rows[:PROMPTS]]
    return Trial(
        texts=[golden.text for golden in contract.golden],
        dialogue=[{"role": "user", "content": QUESTION}] if tokenizer.chat_template else None,
        rows=[row.input_ids[:LONGEST] for row in rows],
        prompts=[golden.ids for golden in contract.golden if golden.ids] + prompts,
        max_new_tokens=export.max_new_tokens,
        threads=threads(),
    )


def _differences(
    found: Finding,
    expected: float,
    opening: str | None,
    tokenizer: Any,
    contract: Contract,
    tolerance: float,
) -> list[str]:
    different = []
    for golden, ids in zip(contract.golden, found.token_ids, strict=True):
        counts = tuple(
            sum(id == special for id in ids)
            for special in (contract.bos_token_id, contract.eos_token_id)
        )
        if ids != golden.ids and not _space_added(golden.text, ids, found.runtime, tokenizer):
            different.append(
                f"{golden.text!r} has the ids {ids}, not {golden.ids} (BOS and EOS {counts}, not "
                f"{(golden.bos, golden.eos)}). Its tokenizer is not the model's."
            )
    if _without_bos(found.opening, tokenizer) != _without_bos(opening, tokenizer):
        different.append(
            f"its chat template renders {found.opening!r}, not {opening!r}. Mend the template."
        )
    change = found.perplexity / expected - 1
    if not abs(change) <= tolerance:  # also where it is not a number
        different.append(
            f"perplexity is {found.perplexity:.4g}, not {expected:.4g}, which the format's own "
            f"rounding explains: {change:+.1%}, over export.tolerance = {tolerance:g}. "
            "Its weights are not the model's, or its runtime computes otherwise."
        )
    return different


def _space_added(text: str, ids: list[int], runtime: str, tokenizer: Any) -> bool:
    """Whether `ids` differ by llama.cpp's rule for SentencePiece alone, which no file can switch.

    It puts a space before every text; transformers does not where the text begins with one.
    """
    spaced = text.startswith(" ") and runtime.startswith(LLAMACPP)
    return spaced and ids == encode_prompt(f" {text}", tokenizer)


def _without_bos(text: str | None, tokenizer: Any) -> str | None:
    """Runtimes leave a BOS that they add by themselves out of the rendered dialogue."""
    return text.removeprefix(tokenizer.bos_token) if text and tokenizer.bos_token else text


def _without_eos(texts: list[list[int]], contract: Contract) -> list[list[int]]:
    """llama.cpp does not hand out the EOS that it stops at."""
    return [[id for id in ids if id != contract.eos_token_id] for ids in texts]
