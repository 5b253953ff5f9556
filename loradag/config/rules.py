"""What a value must satisfy: rules as metadata of dataclass fields."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from string import Formatter
from typing import Any

from omegaconf import MISSING


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy, in words and as a predicate (never called with None)."""

    text: str
    holds: Callable[[Any], bool]
    remedy: str


def rule_field(rule: Rule) -> Any:
    return field(default=MISSING, metadata={"rule": rule})


def one_of(*options: str) -> Any:
    listed = ", ".join(options)
    return rule_field(
        Rule("must be one of the options", lambda v: v in options, f"Choose {listed}.")
    )


def some_of(*options: str) -> Any:
    """One option, or a list of several."""

    def holds(value: Any) -> bool:
        values = [value] if isinstance(value, str) else value
        return isinstance(values, list) and bool(values) and set(values) <= set(options)

    listed = ", ".join(options)
    return rule_field(
        Rule("must be one or several of the options", holds, f"Choose from {listed}.")
    )


def at_least(low: float) -> Any:
    return rule_field(Rule(f"must be at least {low}", lambda v: v >= low, f"Use {low} or more."))


def above(low: float) -> Any:
    return rule_field(Rule(f"must be above {low}", lambda v: v > low, f"Use a number above {low}."))


def between(low: float, high: float) -> Any:
    text = f"must be from {low} to {high}"
    return rule_field(Rule(text, lambda v: low <= v <= high, f"Use a number from {low} to {high}."))


def file_size() -> Any:
    def holds(value: str) -> bool:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[KMGT]B", value.strip(), re.IGNORECASE)
        return match is not None and float(match[1]) > 0

    return rule_field(Rule("must be a size in KB, MB, GB or TB", holds, "Use a size such as 5GB."))


def repository() -> Any:
    """A repository of a model hub."""

    def holds(value: str) -> bool:
        return re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]{0,95}", value) is not None

    return rule_field(Rule("must be a repository", holds, "Use a name such as org/name, or null."))


def fraction() -> Any:
    text = "must be from 0 up to, not including, 1"
    return rule_field(Rule(text, lambda v: 0 <= v < 1, "Use a fraction such as 0.05."))


def field_names(format_string: str) -> list[str]:
    """The fields that a format string names, each once, in order."""
    named = [name for _, name, _, _ in Formatter().parse(format_string) if name]
    return list(dict.fromkeys(named))


def format_string() -> Any:
    """Text with a row's fields in braces, e.g. `Quote: {quote}`."""

    def holds(value: Any) -> bool:
        try:
            parts = [part for part in Formatter().parse(value) if part[1] is not None]
        except ValueError:  # a single brace
            return False
        return not any(
            spec or conversion or re.search(r"^\d*$|[.\[\]{}]", str(name))
            for _, name, spec, conversion in parts
        )

    text = "must name fields of a row in braces, each by its name"
    remedy = "Write {field}, and {{ or }} for a brace itself."
    return rule_field(Rule(text, holds, remedy))


def module_names(*, pattern: bool) -> Any:
    """Names of modules; with `pattern`, also one regular expression, or "all-linear"."""

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return pattern and bool(value) and _compiles(value)
        is_list = isinstance(value, list) and bool(value)
        return is_list and all(isinstance(name, str) and name for name in value)

    other = 'must be "all-linear", a regular expression' if pattern else "must be null"
    remedy = "For example [q_proj, v_proj]." if pattern else "For example [lm_head], or null."
    return rule_field(Rule(f"{other} or a list of module names", holds, remedy))


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
