"""Text from the tuned model: `python -m stages.generate prompt="…"`, or `chat=true`.

Renders the prompt in the template that the model was trained with, and goes on from it through the
transformers text-generation pipeline. Reads the outputs of `prepare`, `quantize` and `train`; of
several runs it is the one that stands in the workspace.
"""

import sys
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from loradag.config.problems import LoradagError
from loradag.config.validation import load_config
from loradag.models.device import compute_dtype
from loradag.runtime import Paths
from loradag.runtime.environment import configure


@dataclass
class Generate:
    """Options of the command line, `key=value` each."""

    prompt: str | None = None
    chat: bool = False  # a dialogue in the terminal
    model: str = "tuned"  # tuned, merged or base
    max_new_tokens: int = 64
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int = 0


def generate(paths: Paths, options: Generate) -> None:
    """Print the continuation of `options.prompt`, or hold a dialogue."""
    from loradag.models.generator import TextGenerator

    generator = TextGenerator(paths, options.model, compute_dtype("auto"))
    sampling = {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
    }
    if not options.chat:
        print(generator.complete(str(options.prompt), **sampling))
        return
    print("A dialogue with the model. An empty line ends it.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while said := _ask():
        messages.append({"role": "user", "content": said})
        answer = generator.answer(messages, **sampling)
        print(answer)
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def read_options(arguments: list[str]) -> Generate:
    """Options from `key=value` arguments.

    Raises:
        LoradagError: an unknown key, a wrong type, or nothing to go on from.
    """
    for argument in arguments:
        if "=" not in argument:
            raise LoradagError(f'{argument!r} is not of the form key=value. Try prompt="…".')
    pairs = dict(argument.split("=", 1) for argument in arguments)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Generate), pairs)
        options: Any = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        known = ", ".join(Generate.__dataclass_fields__)
        raise LoradagError(f"{str(error).splitlines()[0]}. Known: {known}.") from error
    if options.prompt in (None, MISSING) and not options.chat:
        raise LoradagError('nothing to go on from. Say prompt="…", or chat=true.')
    return options  # type: ignore[no-any-return]


if __name__ == "__main__":
    try:
        settings = read_options(sys.argv[1:])
        here = Paths()
        configure(load_config(here.params).runtime)
        generate(here, settings)
    except LoradagError as error:
        sys.exit(f"generate: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
