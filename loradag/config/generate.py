"""The options of `python -m stages.generate`."""

from __future__ import annotations

from dataclasses import dataclass

from loradag.config import command_line
from loradag.config.command_line import option, read_arguments
from loradag.config.problems import LoradagError
from loradag.config.rules import at_least, between, one_of


@dataclass
class Generate:
    """Options of the command line, `key=value` each."""

    prompt: str | None = option(None, "the text to continue")
    prompts: str | None = option(None, "a file of prompts: a line each, or .jsonl with `prompt`")
    output: str | None = option(None, "a .jsonl file for what `prompts` gives; null: the terminal")
    chat: bool = option(False, "a dialogue in the terminal")
    model: str = option("tuned", "tuned, merged or base", one_of("tuned", "merged", "base"))
    adapter: bool = option(True, "false: the tuned model's quantized base without its adapter")
    max_new_tokens: int = option(64, "of each text", at_least(1))
    temperature: float = option(0.0, "0: greedy", at_least(0))
    top_p: float = option(1.0, "the share of probability that is sampled from", between(0, 1))
    seed: int = option(0, "of the samples", between(0, 2**32 - 1))


def usage() -> str:
    return command_line.usage('usage: python -m stages.generate prompt="…" [key=value …]', Generate)


def read_options(arguments: list[str]) -> Generate:
    """Options from `key=value` arguments.

    Raises:
        LoradagError: an unknown key, a wrong type or value, or nothing to continue.
    """
    options = read_arguments(Generate, arguments, 'prompt="…"')
    given = [options.prompt is not None, options.prompts is not None, options.chat]
    if sum(given) != 1:
        what = "nothing to continue" if not any(given) else "more than one of them"
        raise LoradagError(f'{what}. Give prompt="…", prompts=FILE or chat=true.')
    if options.output and options.prompts is None:
        raise LoradagError(f"output = {options.output!r}: is for prompts=FILE.")
    if not options.adapter and options.model != "tuned":
        raise LoradagError(f"adapter = false: is for model=tuned, not model={options.model}.")
    return options
