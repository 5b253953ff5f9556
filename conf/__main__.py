"""Compose `conf/` into `params.yaml`: `python -m conf [GROUP=OPTION | KEY=VALUE ...]`."""

import sys

from conf.compose import compose, write_params
from conf.schema import LoradagError

if __name__ == "__main__":
    try:
        write_params(compose(sys.argv[1:]))
    except LoradagError as error:
        sys.exit(f"conf: {error}")
