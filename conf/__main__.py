"""Compose `conf/` into `params.yaml`: `python -m conf [GROUP=OPTION | KEY=VALUE ...]`."""

import sys

from loradag.config.composition import compose, write_params
from loradag.config.problems import LoradagError

if __name__ == "__main__":
    try:
        write_params(compose(sys.argv[1:]))
    except LoradagError as error:
        sys.exit(f"conf: {error}")
