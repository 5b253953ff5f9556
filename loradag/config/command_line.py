"""Read the options of a command, `key=value` each, into a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loradag.config.problems import ConfigError, LoradagError, Problem

T = TypeVar("T")


def option(default: Any, meaning: str, rule: Any = None) -> Any:
    """A dataclass field for an option.

    Args:
        default: its value where the option is not given.
        meaning: what `usage` prints.
        rule: a field that `loradag.config.rules` made, whose rule applies.
    """
    metadata = {"meaning": meaning, **(rule.metadata if rule else {})}
    return dataclasses.field(default=default, metadata=metadata)


def usage(first_line: str, options: type) -> str:
    """The text of `--help`: every option with its default and meaning."""
    lines = [
        f"  {field.name}={'null' if field.default is None else str(field.default).lower()}"
        f"{' ' * max(1, 22 - len(field.name) - len(str(field.default)))}"
        f"{field.metadata['meaning']}"
        for field in dataclasses.fields(options)
    ]
    return "\n".join([first_line, "", *lines])


def read_arguments(options: type[T], arguments: list[str], example: str) -> T:
    """An instance of the dataclass `options` from `arguments`.

    Strings are taken literally: OmegaConf would resolve a ${name} in them.

    Args:
        options: the dataclass, made of `option` fields.
        arguments: of the command line.
        example: a valid argument, for error messages.

    Raises:
        LoradagError: an unknown option, a wrong type, or a value that breaks its rule.
    """
    for argument in arguments:
        if "=" not in argument:
            raise LoradagError(f"{argument!r} is not of the form key=value. Try {example}.")
    pairs = dict(argument.split("=", 1) for argument in arguments)
    fields: tuple[Any, ...] = dataclasses.fields(options)  # type: ignore[arg-type]
    texts = {
        field.name: pairs.pop(field.name)
        for field in fields
        if str(field.type).startswith("str") and pairs.get(field.name, "null") != "null"
    }
    try:
        merged = OmegaConf.merge(OmegaConf.structured(options), OmegaConf.create(pairs))
        others: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        known = ", ".join(field.name for field in fields)
        raise LoradagError(f"{str(error).splitlines()[0]}. Known: {known}.") from error
    found: T = dataclasses.replace(others, **texts)
    if problems := list(_broken_rules(found)):
        raise ConfigError(problems, "the command line")
    return found


def _broken_rules(options: Any) -> Iterator[Problem]:
    for field in dataclasses.fields(options):
        value, rule = getattr(options, field.name), field.metadata.get("rule")
        if rule is not None and not rule.holds(value):
            yield Problem(field.name, value, rule.text, rule.remedy)
