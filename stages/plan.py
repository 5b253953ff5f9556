"""Show what a run or a sweep would do, before anything runs.

    python -m stages.plan [-m] [GROUP=OPTION | KEY=VALUE ...]

For each job: which stages would run and which come from the cache, the number of trained
parameters, and about how much memory `train` and `merge` would take. For all jobs together: about
how long they take, by earlier runs in MLflow, and how much disk. Without overrides it shows what
`dvc repro` would do.
"""

import shlex
import sys
from pathlib import Path

from loradag.config.problems import LoradagError
from loradag.runtime.broken_pipe import quiet_broken_pipe


def plan(arguments: list[str]) -> None:
    from loradag.planning.overview import overview, print_costs, print_overview
    from loradag.runtime.environment import silence_libraries

    silence_libraries()
    several = {"-m", "--multirun"}
    overrides = [argument for argument in arguments if argument not in several]
    planned = overview(overrides, bool(several & set(arguments)), Path())
    print_overview(planned)
    print_costs(planned, Path())
    sweep = shlex.join(["python", "-m", "stages.sweep", *arguments])
    print("Run it:", sweep if arguments else "dvc repro")


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(__doc__)
    try:
        with quiet_broken_pipe():
            plan(sys.argv[1:])
    except LoradagError as error:
        sys.exit(f"plan: {error}")
