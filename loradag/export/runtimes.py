"""Load an exported format where users will, in a fresh process, and put it to the trial."""

from __future__ import annotations

import importlib.metadata
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError
from loradag.export.measurement import Finding, Trial, find_in_transformers

TOP = 1000  # next tokens asked for first; the whole vocabulary only where the right one is rarer


def in_fresh_process(run: Callable[..., Finding], *given: Any) -> Finding:
    """`run(*given)` in a new interpreter that the hub is closed to.

    Raises:
        LoradagError: the runtime refuses the files or dies on them.
    """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_close_hub) as pool:
        try:
            return pool.submit(run, *given).result()
        except BrokenProcessPool as error:
            raise LoradagError(f"the runtime died on {given[0]}.") from error
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            message = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LoradagError(f"the runtime refuses {given[0]}: {message}") from error


def _close_hub() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TQDM_DISABLE"] = "1"


def find_in_folder(folder: str, trial: Trial) -> Finding:
    """transformers, with nothing but the folder."""
    from loradag.evaluation.parity import comparison_dtype
    from loradag.models.loading import load_model
    from loradag.models.tokenizer import load_tokenizer

    model = load_model(Path(folder), comparison_dtype(Path(folder)))
    return find_in_transformers(
        model, load_tokenizer(Path(folder)), trial, _version("transformers")
    )


def find_in_adapter(folder: str, base: str, trial: Trial) -> Finding:
    """peft, with the adapter's folder on the base's."""
    from peft import PeftModel

    from loradag.evaluation.parity import comparison_dtype
    from loradag.models.loading import load_model
    from loradag.models.tokenizer import load_tokenizer

    model = PeftModel.from_pretrained(
        load_model(Path(base), comparison_dtype(Path(base))), folder
    ).eval()
    return find_in_transformers(model, load_tokenizer(Path(folder)), trial, _version("peft"))


def find_in_llamacpp(file: str, trial: Trial) -> Finding:
    """llama.cpp, through its own server on the loopback interface."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.port = 0
    params.n_parallel = 1
    params.n_ctx = 8 + trial.max_new_tokens + max(map(len, trial.rows + trial.prompts))
    params.cpuparams.n_threads = trial.threads
    params.cpuparams_batch.n_threads = trial.threads
    params.warmup = False
    params.verbosity = -1
    server = xllamacpp.Server(params)

    def ask(path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            server.listening_address + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    # A token of half a character would be held back, and its probabilities with it: have a letter
    # sampled. What is asked for are the probabilities before sampling, which no bias changes.
    letter = ask("/tokenize", content="a", add_special=False)["tokens"][-1]

    def log_probability(ids: list[int], following: int, top: int) -> float | None:
        answer = ask(
            "/completion", prompt=ids, n_predict=1, n_probs=top, cache_prompt=True,
            temperature=0, logit_bias=[[letter, 1e9]],
        )  # fmt: skip
        ranked = answer["completion_probabilities"][0]["top_logprobs"]
        return next((one["logprob"] for one in ranked if one["id"] == following), None)

    def nll(row: list[int]) -> float:
        total = 0.0
        for at in range(1, len(row)):
            found = log_probability(row[:at], row[at], TOP)
            if found is None:
                found = log_probability(row[:at], row[at], 1 << 30)
            if found is None:
                raise KeyError(f"token {row[at]} is not in the vocabulary")
            total -= found
        return total

    def tokenize(text: str) -> list[int]:
        answer = ask("/tokenize", content=text, add_special=True, parse_special=True)
        return answer["tokens"]  # type: ignore[no-any-return]

    answers = [
        ask(
            "/completion", prompt=ids, n_predict=trial.max_new_tokens, temperature=0, top_k=1,
            return_tokens=True,
        )
        for ids in trial.prompts
    ]  # fmt: skip
    milliseconds = sum(answer["timings"]["predicted_ms"] for answer in answers)
    opening = None
    if trial.dialogue:
        opening = ask("/apply-template", messages=trial.dialogue)["prompt"]
    return Finding(
        runtime=_version("xllamacpp"),
        token_ids=[tokenize(text) for text in trial.texts],
        opening=opening,
        nll_sum=sum(nll(row) for row in trial.rows),
        tokens=sum(len(row) - 1 for row in trial.rows),
        greedy=[answer["tokens"] for answer in answers],
        tokens_per_second=sum(len(answer["tokens"]) for answer in answers) / milliseconds * 1000,
    )


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"
