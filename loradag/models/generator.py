"""A model that continues a prompt, rendered as in its training."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from transformers import TextStreamer

from loradag.config.problems import LoradagError
from loradag.data.templates import chat_prompt, render_prompt
from loradag.data.token_contract import read_contract
from loradag.models.loading import load_base, load_model, load_quantized, load_tuned
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; a temperature of 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


class Stream(TextStreamer):
    """Text written as it is generated, and its tokens counted."""

    def __init__(self, tokenizer: Any, output: TextIO | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.output = output
        self.tokens = -1  # the prompt comes first, in one call

    def put(self, value: Any) -> None:
        self.tokens += 1
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.output is not None:
            self.output.write(text)
            self.output.flush()


class TextGenerator:
    """The transformers text-generation pipeline over one of a run's models."""

    def __init__(self, paths: Paths, model: str, dtype: torch.dtype, sampling: Sampling) -> None:
        from transformers import pipeline

        load = {
            "tuned": lambda: load_tuned(paths, load_quantized(paths, dtype)),
            "quantized": lambda: load_quantized(paths, dtype),
            "merged": lambda: load_model(paths.merged, dtype),
            "base": lambda: load_base(paths, dtype),
        }
        needed = {"tuned": paths.adapter, "merged": paths.merged, "quantized": paths.quantized}
        for folder in (paths.contract, needed.get(model, paths.base)):
            if not folder.exists():
                raise LoradagError(f"{folder} is missing. Run `dvc repro` first.")
        self.template = read_contract(paths.contract).template
        self.tokenizer = load_tokenizer(paths.base)
        self.pipe = pipeline("text-generation", model=load[model](), tokenizer=self.tokenizer)
        self.sampling = sampling
        self.tokens, self.seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of everything generated so far, prompts included in the time."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def complete(self, prompt: str, output: TextIO | None = None) -> str:
        """The rendered prompt (of a dialogue: nothing) and its continuation, also to `output`."""
        text = render_prompt(self.template, prompt, self.tokenizer)
        opening = text if self.template.kind == "plain" else ""
        if output is not None:
            output.write(opening)
        return opening + self._generate(text, output)

    def complete_all(self, prompts: list[str]) -> Iterator[dict[str, Any]]:
        """`prompt`, `text` and `tokens` (generated) of each prompt, in order."""
        for prompt in prompts:
            before = self.tokens
            text = self.complete(prompt)
            yield {"prompt": prompt, "text": text, "tokens": self.tokens - before}

    def answer(self, messages: list[dict[str, str]], output: TextIO | None = None) -> str:
        """The model's turn after `messages`, also to `output`."""
        if self.tokenizer.chat_template is None:
            raise LoradagError("chat=true: the model's tokenizer has no chat template.")
        return self._generate(chat_prompt(messages, self.tokenizer), output)

    def _generate(self, text: str, output: TextIO | None) -> str:
        from transformers import set_seed

        sampling = self.sampling
        set_seed(sampling.seed)
        sampled = {
            "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p,
            "top_k": 0,
        }  # fmt: skip
        opens = text.startswith(self.tokenizer.bos_token or "\0")
        stream = Stream(self.tokenizer, output)
        started = time.perf_counter()
        generated = self.pipe(
            text,
            max_new_tokens=sampling.max_new_tokens,
            return_full_text=False,
            add_special_tokens=not opens,
            streamer=stream,
            **(sampled if sampling.temperature > 0 else {"do_sample": False}),
        )
        self.seconds += time.perf_counter() - started
        self.tokens += stream.tokens
        return str(generated[0]["generated_text"])


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: a line each, or of `.jsonl` the key `prompt` of each line.

    Raises:
        LoradagError: there is no such file, no prompt in it, or a line that is none.
    """
    where = f"prompts = {str(path)!r}"
    if not path.is_file():
        raise LoradagError(f"{where}: no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoradagError(f"{where}: is not UTF-8 ({error}). Convert it.") from error
    # Not `splitlines`, which also splits at characters that JSON allows within a string.
    lines = [(at, line) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise LoradagError(f"{where}: has no prompt.")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    prompts = []
    for at, line in lines:
        try:
            prompt = json.loads(line)["prompt"]
        except (json.JSONDecodeError, KeyError, TypeError):
            prompt = None
        if not isinstance(prompt, str):
            raise LoradagError(f"{where}: line {at} is no JSON object whose key prompt has a text.")
        prompts.append(prompt)
    return prompts


def check_output(path: Path) -> None:
    """Refuse, before any text is generated, a file that cannot be written.

    Raises:
        LoradagError: it is a folder, or in one that cannot be made or written to.
    """
    if path.is_dir():
        raise LoradagError(f"output = {str(path)!r}: is a folder. Name a file.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        is_writable = os.access(path.parent, os.W_OK)
    except OSError:
        is_writable = False
    if not is_writable:
        raise LoradagError(f"output = {str(path)!r}: cannot be written there. Name another file.")
