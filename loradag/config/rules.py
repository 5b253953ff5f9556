"""What a value must satisfy: rules as metadata of dataclass fields."""

from collections.abc import Callable
from dataclasses import dataclass, field
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


def fraction() -> Any:
    text = "must be from 0 up to, not including, 1"
    return rule_field(Rule(text, lambda v: 0 <= v < 1, "Use a fraction such as 0.05."))
