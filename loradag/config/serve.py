"""The options of `python -m stages.serve`."""

from __future__ import annotations

from dataclasses import dataclass

from loradag.config import command_line
from loradag.config.command_line import option, read_arguments
from loradag.config.rules import at_least, between


@dataclass
class Serve:
    """Options of the command line, `key=value` each."""

    file: str | None = option(None, "the GGUF to serve; null: the first that was exported")
    port: int = option(8080, "on the loopback interface; 0: any that is free", between(0, 65535))
    context: int = option(4096, "tokens of a request with its answer", at_least(1))


def usage() -> str:
    return command_line.usage("usage: python -m stages.serve [key=value …]", Serve)


def read_serve_options(arguments: list[str]) -> Serve:
    """Options from `key=value` arguments.

    Raises:
        LoradagError: an unknown key, or a wrong type or value.
    """
    return read_arguments(Serve, arguments, "port=8081")
