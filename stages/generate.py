"""Text from the tuned model: `python -m stages.generate prompt="…"`, or `chat=true`.

Renders the prompt in the template that the model was trained with, and continues it through the
transformers text-generation pipeline, printed as it comes. Reads the outputs of `prepare`,
`quantize` and `train` in the workspace. `--help` lists the options.
"""

import json
import sys
from pathlib import Path

from loradag.config.generate import Generate, read_options, usage
from loradag.config.problems import LoradagError
from loradag.config.validation import load_config
from loradag.models.device import compute_dtype
from loradag.runtime import Paths, replacing
from loradag.runtime.broken_pipe import quiet_broken_pipe
from loradag.runtime.environment import configure


def generate(paths: Paths, options: Generate) -> None:
    """Print the continuation of `options.prompt`, write those of a file, or lead a dialogue."""
    from loradag.models.generator import Sampling, TextGenerator, check_output, read_prompts

    prompts = [] if options.prompts is None else read_prompts(Path(options.prompts))
    output = None if options.output is None else Path(options.output)
    if output is not None:
        check_output(output)
    sampling = Sampling(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    model = options.model if options.adapter else "quantized"
    generator = TextGenerator(paths, model, compute_dtype("auto"), sampling)
    if prompts:
        lines = (json.dumps(row, ensure_ascii=False) for row in generator.complete_all(prompts))
        if output is None:
            for line in lines:
                print(line, flush=True)
        else:
            with replacing(output) as partial, partial.open("w", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
    elif options.chat:
        _talk(generator)
    else:
        generator.complete(str(options.prompt), sys.stdout)
        print()
    print(f"{generator.tokens_per_second:.1f} tokens a second", file=sys.stderr)


def _talk(generator: "TextGenerator") -> None:  # type: ignore[name-defined]  # noqa: F821
    print("A dialogue with the model. An empty line ends it.", file=sys.stderr)
    messages: list[dict[str, str]] = []
    while text := _ask():
        messages.append({"role": "user", "content": text})
        answer = generator.answer(messages, sys.stdout)
        print()
        messages.append({"role": "assistant", "content": answer})


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    with quiet_broken_pipe():
        if {"--help", "-h"} & set(sys.argv[1:]):
            print(usage())
            sys.exit()
        try:
            settings = read_options(sys.argv[1:])
            here = Paths()
            configure(load_config(here.params).runtime)
            generate(here, settings)
        except LoradagError as error:
            sys.exit(f"generate: {error}")
        except KeyboardInterrupt:
            sys.exit(130)
