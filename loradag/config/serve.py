"""The options of `python -m stages.serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loradag.config.problems import LoradagError

USAGE = """usage: python -m stages.serve [key=value …]

  file=null     the GGUF to serve; null: the first that was exported
  port=8080     on the loopback interface
  context=4096  tokens of a request with its answer"""


@dataclass
class Serve:
    """Options of the command line, `key=value` each."""

    file: str | None = None
    port: int = 8080
    context: int = 4096


def read_serve_options(arguments: list[str]) -> Serve:
    """Options from `key=value` arguments.

    Raises:
        LoradagError: an unknown key or a wrong type.
    """
    try:
        given = OmegaConf.from_dotlist(arguments)
        options: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Serve), given))
    except OmegaConfBaseException as error:
        known = ", ".join(Serve.__dataclass_fields__)
        raise LoradagError(f"{str(error).splitlines()[0]}. Known: {known}.") from error
    return options  # type: ignore[no-any-return]
