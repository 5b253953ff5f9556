"""Show what this machine has, and what will be slow or fail here with `params.yaml`.

    python -m stages.doctor

Device, memory, bfloat16, bitsandbytes, disk, MLflow, DVC's remote, and whether a hub token is set.
It changes nothing, and prints no secret. The exit code is 1 if something will fail.
"""

import sys
from pathlib import Path

from loradag.runtime.broken_pipe import quiet_broken_pipe


def doctor(project: Path) -> int:
    from loradag.planning.machine import examine, print_findings

    findings = examine(project)
    print_findings(findings)
    return int(any(finding.fails for finding in findings))


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    with quiet_broken_pipe():
        sys.exit(doctor(Path()))
