"""Verify that what is exported computes what was merged, in the runtime that will run it.

Compared are the ids of the golden texts and of every held-out row that is used, dialogues in the
chat template, where a generated text ends, and the next token's distribution at every token of
those rows.
"""

from __future__ import annotations

import gc
import itertools
import math
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from loradag.config.export import MIXED_TYPES, Export
from loradag.config.problems import LoradagError
from loradag.data.rows import Row, read_rows
from loradag.data.templates import encode_prompt
from loradag.data.token_contract import Contract, read_contract, verify_tokenizer
from loradag.evaluation.parity import Parity, Probe, greedy_match, parity, recorded
from loradag.export.compressed import plan_compression
from loradag.export.folders import base_quantization, base_scheme
from loradag.export.gguf_adapter import write_gguf_base
from loradag.export.gguf_format import count_types, float_type
from loradag.export.importance import NOT_MEASURED, Importance
from loradag.export.measurement import (
    Inputs,
    Measurement,
    render_dialogue,
    rendered_dialogues,
)
from loradag.export.reference import (
    COMPRESSED,
    GGUF,
    GGUF_ADAPTER,
    Expected,
    compute_reference,
)
from loradag.export.runtimes import measure_in_llamacpp, measure_in_transformers
from loradag.models.pinning import weights_folder
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths
from loradag.runtime.environment import threads
from loradag.runtime.report_keys import ExportedFormat

LONGEST = 256  # tokens of a row
PROMPTS = 4  # of rows, for greedy text
LLAMACPP = "xllamacpp"


def verify_exports(
    paths: Paths, exported: dict[str, Path], export: Export, importance: Importance
) -> dict[str, ExportedFormat]:
    """Compare every format with the model that it should be; the report's numbers by format.

    Args:
        exported: each format's name, and the file or folder that a runtime loads.
        importance: of the columns that mixtures were rounded by.

    Raises:
        LoradagError: naming every format and how it differs.
    """
    paths.state.mkdir(exist_ok=True)
    numbers: dict[str, ExportedFormat] = {}
    problems: list[str] = []
    with tempfile.TemporaryDirectory(dir=paths.state, prefix="export-") as scratch:
        verification = Verification(paths, export, list(exported), Path(scratch), importance)
        for name, path in exported.items():
            numbers[name], wrong = verification.verify(name, path)
            problems += [f"  - {name}: {problem}" for problem in wrong]
    if problems:
        raise LoradagError("\n".join(["an export is not the merged model:", *problems]))
    return numbers


class Verification:
    """What every format is measured on, and what it should compute."""

    def __init__(
        self,
        paths: Paths,
        export: Export,
        formats: list[str],
        scratch: Path,
        importance: Importance = NOT_MEASURED,
    ) -> None:
        """Compute the references of `formats`.

        Args:
            scratch: a folder for logits.
            importance: of the columns that mixtures were rounded by.
        """
        self.paths, self.scratch, self.importance = paths, scratch, importance
        self.contract = read_contract(paths.contract)
        self.tokenizer = load_tokenizer(paths.merged)
        verify_tokenizer(self.tokenizer, self.contract)
        rows = read_rows(paths.prepared / "eval.parquet")[: export.rows]
        self.inputs = _inputs(rows, self.contract, self.tokenizer, export)
        self.ids = [encode_prompt(text, self.tokenizer) for text in self.inputs.texts]
        self.reference = compute_reference(
            paths, formats, self.inputs, scratch, export.tolerance, importance
        )
        gc.collect()  # hooks of accelerate keep a placed model, while a runtime loads its own

    def verify(self, name: str, path: Path) -> tuple[ExportedFormat, list[str]]:
        """The report's numbers of the format `name`, and how it differs from what it should be."""
        found = self._measure(name, path)
        merged, expected = self.reference.merged, self.reference.expected[name]
        wrong = _token_differences(
            found, self.inputs.texts, self.ids, self.contract, self.tokenizer
        )
        eos, is_model = self.contract.eos_token_id, name not in ("adapter", GGUF_ADAPTER)
        wrong += _stop_differences(found, eos, {eos, *merged.stops}, is_model)
        variables, different = _template_differences(
            found, merged, self.inputs.dialogues, self.tokenizer
        )
        wrong += different
        numbers: dict[str, Any] = {"runtime": found.runtime, "dtype": self.reference.dtype}
        if variables:
            numbers["template_variables"] = variables
        if name == "adapter":
            numbers["base"] = base_scheme(self.paths)
        elif name == GGUF_ADAPTER:
            numbers["base"] = float_type(weights_folder(self.paths.base))
        elif name.startswith(COMPRESSED):
            option = name.removeprefix(COMPRESSED)
            numbers["group_size"] = plan_compression(self.paths.merged, option).group_size
        elif name.startswith(GGUF):
            numbers["types"] = count_types(path)
            if name.removeprefix(GGUF) in MIXED_TYPES:
                numbers["importance_tokens"] = self.importance.tokens
        sizes = [next(recorded(of)).shape[-1] for of in (merged.logits, found.logits)]
        if sizes[0] != sizes[1]:
            wrong.append(f"it has {sizes[1]} tokens, the model {sizes[0]}.")
            return cast(ExportedFormat, numbers), wrong
        moved = min((self._parity(of, found.logits) for of in expected.logits), key=_distance)
        from_merged = self._parity(merged.logits, found.logits)
        texts = [_without_eos(of.greedy, self.contract) for of in (merged, found)]
        numbers |= {
            "perplexity": moved.perplexity_after,
            "expected_perplexity": moved.perplexity_before,
            "merged_perplexity": from_merged.perplexity_before,
            "mean_kl": moved.mean_kl,
            "mean_kl_limit": expected.kl,
            "mean_kl_to_merged": from_merged.mean_kl,
            "mean_abs_nll_diff": moved.mean_abs_nll_diff,
            "mean_abs_nll_diff_limit": expected.nll,
            "tokens": sum(len(row) - 1 for row in self.inputs.rows),
            "texts": len(self.ids),
            "token_ids_match": found.token_ids == self.ids,
            "greedy_match": greedy_match(*texts),
            "tokens_per_second": round(found.tokens_per_second, 2),
            "rounds_activations": False if self.reference.rounds_activations else None,
        }
        return cast(ExportedFormat, numbers), wrong + _distribution_differences(moved, expected)

    def _measure(self, name: str, path: Path) -> Measurement:
        scratch = Path(tempfile.mkdtemp(dir=self.scratch, prefix=f"{name}-"))
        if name == GGUF_ADAPTER:
            base = scratch / "base.gguf"
            write_gguf_base(self.paths.base, base)
            return measure_in_llamacpp(base, self.inputs, scratch, threads(), adapter=path)
        if name.startswith(GGUF):
            return measure_in_llamacpp(path, self.inputs, scratch, threads())
        adapter = name == "adapter"
        return measure_in_transformers(
            path,
            self.inputs,
            scratch,
            dtype=self.reference.dtype,
            base=weights_folder(self.paths.base) if adapter else None,
            quantization=base_quantization(self.paths) if adapter else None,
        )

    def _parity(self, expected: Path, found: Path) -> Parity:
        probe = Probe(self.inputs.rows, [], [], 0)
        return parity(probe, recorded(expected), recorded(found), [], [])


def _distance(moved: Parity) -> float:
    return moved.mean_kl if math.isfinite(moved.mean_kl) else math.inf


def _inputs(rows: list[Row], contract: Contract, tokenizer: Any, export: Export) -> Inputs:
    prompts = [encode_prompt(row.prompt, tokenizer) for row in rows[:PROMPTS]]
    texts = [golden.text for golden in contract.golden] + [row.text for row in rows]
    return Inputs(
        # Runtimes add a BOS by themselves; a template may have written one.
        texts=[_without_bos(text, tokenizer) for text in texts],
        dialogues=rendered_dialogues(tokenizer),
        rows=[row.input_ids[:LONGEST] for row in rows],
        prompts=prompts,
        max_new_tokens=export.max_new_tokens,
    )


def _token_differences(
    found: Measurement,
    texts: list[str],
    expected: list[list[int]],
    contract: Contract,
    tokenizer: Any,
) -> list[str]:
    different = []
    specials = [id for id in (contract.bos_token_id, contract.eos_token_id) if id is not None]
    for text, ids, should in zip(texts, found.token_ids, expected, strict=True):
        if ids != should and not _space_added(text, ids, found.runtime, tokenizer):
            counts, right = ([of.count(id) for id in specials] for of in (ids, should))
            different.append(
                f"{text!r} has the ids {ids}, not {should} (BOS and EOS {counts}, not {right}). "
                "Its tokenizer is not the model's."
            )
    return different


def _template_differences(
    found: Measurement,
    merged: Measurement,
    dialogues: list[list[dict[str, str]]],
    tokenizer: Any,
) -> tuple[list[str], list[str]]:
    """Variables that the runtime gives the template by itself, and how dialogues differ."""
    variables: list[str] = []
    different = []
    for at, dialogue in enumerate(dialogues):
        opening, expected, ids = found.openings[at], merged.openings[at], merged.opening_ids[at]
        if _without_bos(opening, tokenizer) != _without_bos(expected, tokenizer):
            given = _variables_given(opening, dialogue, found.runtime, tokenizer)
            if not given:
                different.append(
                    f"its chat template renders {opening!r}, not {expected!r}. Fix the template."
                )
                continue
            variables += given
            ids = encode_prompt(
                render_dialogue(tokenizer, dialogue, variables=given) or "", tokenizer
            )
        if found.opening_ids[at] != ids:
            different.append(
                f"a dialogue has the ids {found.opening_ids[at]}, not {ids}. Its tokenizer or the "
                "BOS of its chat template is not the model's."
            )
    return sorted(set(variables)), different


def _variables_given(
    opening: str, dialogue: list[dict[str, str]], runtime: str, tokenizer: Any
) -> dict[str, Any]:
    """Variables with which the template renders `opening`, of those that llama.cpp's server gives.

    Empty: none do. A request can set them otherwise, by `chat_template_kwargs`.
    """
    if not runtime.startswith(LLAMACPP):
        return {}
    # Whether a model is to think depends on what the server makes of its template.
    for thinking, date in itertools.product((None, True, False), (None, time.strftime("%d %b %Y"))):
        given = {"enable_thinking": thinking, "date_string": date}
        given = {name: value for name, value in given.items() if value is not None}
        text = render_dialogue(tokenizer, dialogue, variables=given)
        if text and _without_bos(text, tokenizer) == _without_bos(opening, tokenizer):
            return given
    return {}


def _stop_differences(found: Measurement, eos: int, stops: set[int], is_model: bool) -> list[str]:
    """How the ends of a generated text differ from the merged model's.

    Args:
        eos: that ends the rows of the training.
        stops: of the merged model.
        is_model: the format brings its own settings of generation; an adapter takes the base's.
    """
    different = []
    if found.eos != eos:
        different.append(f"its EOS is {found.eos}, not {eos}. Fix its tokenizer.")
    # llama.cpp knows further tokens that end a text, by their names.
    unknown = set() if found.runtime.startswith(LLAMACPP) else set(found.stops) - stops
    if is_model and (eos not in found.stops or unknown):
        different.append(
            f"a generated text ends at {found.stops}, not at {sorted(stops)}. Fix eos_token_id in "
            "generation_config.json."
        )
    return different


def _distribution_differences(moved: Parity, expected: Expected) -> list[str]:
    remedy = "Its weights or shape are not the model's, or its runtime computes otherwise."
    change = moved.perplexity_after / moved.perplexity_before - 1
    different = []
    if not abs(change) <= expected.perplexity:  # also where it is not a number
        different.append(
            f"perplexity is {moved.perplexity_after:.6g}, not {moved.perplexity_before:.6g}, which "
            f"the format's own rounding explains: {change:+.2%}, over {expected.perplexity:g} "
            f"(export.tolerance, and at most 0.001 for float types). {remedy}"
        )
    for what, value, limit in (
        ("mean KL of the next token's distribution", moved.mean_kl, expected.kl),
        ("mean difference of a token's NLL", moved.mean_abs_nll_diff, expected.nll),
    ):
        if not value <= limit:
            different.append(
                f"{what} is {value:.3g} nats, over {limit:.3g}, which rounding explains. {remedy}"
            )
    return different


def _space_added(text: str, ids: list[int], runtime: str, tokenizer: Any) -> bool:
    """Whether `ids` differ by llama.cpp's rule for SentencePiece alone, which no file can switch.

    It puts a space before every text; transformers does not where the text begins with one.
    """
    spaced = text.startswith(" ") and runtime.startswith(LLAMACPP)
    return spaced and ids == encode_prompt(f" {text}", tokenizer)


def _without_bos(text: str, tokenizer: Any) -> str:
    """Runtimes leave a BOS that they add by themselves out of the rendered dialogue."""
    return text.removeprefix(tokenizer.bos_token) if tokenizer.bos_token else text


def _without_eos(texts: list[list[int]], contract: Contract) -> list[list[int]]:
    """llama.cpp does not hand out the EOS that it stops at."""
    return [[id for id in ids if id != contract.eos_token_id] for ids in texts]
