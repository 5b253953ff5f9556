"""The options of `python -m stages.generate`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loradag.config.problems import ConfigError, LoradagError, Problem
from loradag.config.rules import at_least, between, one_of


def _option(default: Any, meaning: str, rule: Any = None) -> Any:
    """An option; `rule` is a field of `loradag.config.rules`."""
    return field(default=default, metadata={"meaning": meaning, **(rule.metadata if rule else {})})


@dataclass
class Generate:
    """Options of the command line, `key=value` each."""

    prompt: str | None = _option(None, "the text to continue")
    prompts: str | None = _option(None, "a file of prompts: a line each, or .jsonl with `prompt`")
    output: str | None = _option(None, "a .jsonl file for what `prompts` gives; null: the terminal")
    chat: bool = _option(False, "a dialogue in the terminal")
    model: str = _option("tuned", "tuned, merged or base", one_of("tuned", "merged", "base"))
    adapter: bool = _option(True, "false: the tuned model's quantized base without its adapter")
    max_new_tokens: int = _option(64, "of each text", at_least(1))
    temperature: float = _option(0.0, "0: greedy", at_least(0))
    top_p: float = _option(1.0, "the share of probability that is sampled from", between(0, 1))
    seed: int = _option(0, "of the samples", between(0, 2**32 - 1))


def usage() -> str:
    """Every option with its default and meaning."""
    lines = [
        f"  {option.name}={'null' if option.default is None else str(option.default).lower()}"
        f"{' ' * max(1, 22 - len(option.name) - len(str(option.default)))}"
        f"{option.metadata['meaning']}"
        for option in dataclasses.fields(Generate)
    ]
    return "\n".join(['usage: python -m stages.generate prompt="…" [key=value …]', "", *lines])


def read_options(arguments: list[str]) -> Generate:
    """Options from `key=value` arguments.

    Raises:
        LoradagError: an unknown key, a wrong type or value, or nothing to continue.
    """
    for argument in arguments:
        if "=" not in argument:
            raise LoradagError(f'{argument!r} is not of the form key=value. Try prompt="…".')
    pairs = dict(argument.split("=", 1) for argument in arguments)
    # Taken as they are: OmegaConf would resolve a ${name} in them.
    texts = {key: pairs.pop(key) for key in ("prompt", "prompts", "output") if key in pairs}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Generate), pairs)
        others: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        known = ", ".join(Generate.__dataclass_fields__)
        raise LoradagError(f"{str(error).splitlines()[0]}. Known: {known}.") from error
    options: Generate = dataclasses.replace(others, **texts)
    if problems := list(_broken_rules(options)):
        raise ConfigError(problems, "the command line")
    given = [options.prompt is not None, options.prompts is not None, options.chat]
    if sum(given) != 1:
        what = "nothing to continue" if not any(given) else "more than one of them"
        raise LoradagError(f'{what}. Give prompt="…", prompts=FILE or chat=true.')
    if options.output and options.prompts is None:
        raise LoradagError(f"output = {options.output!r}: is for prompts=FILE.")
    if not options.adapter and options.model != "tuned":
        raise LoradagError(f"adapter = false: is for model=tuned, not model={options.model}.")
    return options


def _broken_rules(options: Generate) -> Iterator[Problem]:
    for option in dataclasses.fields(options):
        value, rule = getattr(options, option.name), option.metadata.get("rule")
        if rule is not None and not rule.holds(value):
            yield Problem(option.name, value, rule.text, rule.remedy)
