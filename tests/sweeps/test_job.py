import os

import pytest

from loradag.comparison.job_records import SweepRecord
from loradag.sweeps import job


@pytest.mark.parametrize(
    ("is_sweep", "parent_died", "orphan"),
    [
        (True, False, False),
        (True, True, False),  # the shell has ended, the sweep runs under nohup
        (False, False, False),
        (False, True, True),  # a worker, and the sweep was killed
    ],
)
def test_workers_end_with_their_sweep_and_a_sweep_outlives_its_shell(
    is_sweep: bool, parent_died: bool, orphan: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = os.getpid() if is_sweep else -1
    sweep = SweepRecord("key", "name", pid, "", "", [], "run", None, [])
    monkeypatch.setattr(job, "PARENT", -1 if parent_died else os.getppid())
    assert job._is_orphan(sweep) is orphan
