"""Push DVC's run cache and every file that it names to the default remote: `make push`.

    python -m stages.push

`dvc push --run-cache` leaves out reports and the outs of other configurations, so that a second
clone would run those stages again. In that clone, `dvc repro --pull` takes what was pushed.
"""

import sys
from pathlib import Path

from loradag.config.problems import LoradagError


def push(project: Path) -> None:
    from loradag.compat import dvc

    dvc.push_runs(project)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    try:
        push(Path())
    except LoradagError as error:
        sys.exit(f"push: {error}")
