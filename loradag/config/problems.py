"""The errors that users see: what is wrong, where, and what to do."""

from dataclasses import dataclass
from typing import Any


class LoradagError(Exception):
    """An error that the user can fix; its message is shown without a traceback."""


@dataclass(frozen=True)
class Problem:
    """One broken rule: `key` = `value`; the rule; the remedy."""

    key: str
    value: Any
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.rule}. {self.remedy}"


class ConfigError(LoradagError):
    """Every problem of one configuration."""

    def __init__(self, problems: list[Problem], source: str = "params.yaml") -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source} has {count}:", *(f"  - {p}" for p in problems)]))
