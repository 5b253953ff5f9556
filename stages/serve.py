"""Serve the exported GGUF by llama.cpp's OpenAI-compatible server: `make serve`.

Reads `artifacts/export/gguf`, or the file that `file=` names. `--help` lists the options.
"""

import signal
import sys
from pathlib import Path

from loradag.config.problems import LoradagError
from loradag.config.serve import Serve, read_serve_options, usage
from loradag.runtime import Paths
from loradag.runtime.environment import threads


def serve(paths: Paths, options: Serve) -> None:
    """Serve until the process is interrupted.

    Raises:
        LoradagError: no such file, a port that is taken, or a file that llama.cpp does not load.
    """
    from loradag.export.runtimes import first_exported, start_server

    file = Path(options.file) if options.file else first_exported(paths)
    try:
        server = start_server(file, options.context, threads(), port=options.port)
    except RuntimeError as error:
        raise LoradagError(
            f"{file}: llama.cpp does not load it ({error}). Name another GGUF file, or lower "
            f"context = {options.context} if memory is short."
        ) from error
    print(f"{file.name}: {server.listening_address}/v1 (Ctrl-C ends it)", flush=True)
    signal.pause()


if __name__ == "__main__":
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage())
        sys.exit()
    try:
        serve(Paths(), read_serve_options(sys.argv[1:]))
    except LoradagError as error:
        sys.exit(f"serve: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
