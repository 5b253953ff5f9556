import os
import signal
import subprocess
import sys
import time

import pytest

from loradag.runtime import exclusive
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from loradag.runtime import exclusive
with exclusive(Path(sys.argv[1]), "waiting for the other"):
    log = Path(sys.argv[2])
    with log.open("a") as file:
        file.write("in\\n")
    time.sleep(float(sys.argv[3]))
    with log.open("a") as file:
        file.write("out\\n")
"""


def holder(folder, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "a.lock"), str(folder / "log"), str(seconds)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_holders_never_overlap_and_the_second_names_what_it_waits_for(tmp_path) -> None:
    holders = [holder(tmp_path, 0.3) for _ in range(4)]
    messages = [process.communicate(timeout=60)[1] for process in holders]
    assert (tmp_path / "log").read_text().split() == ["in", "out"] * 4
    assert "waiting for the other" in "".join(messages)
    assert not (tmp_path / "a.lock").exists()


def test_a_killed_holder_leaves_no_lock(tmp_path) -> None:
    first = holder(tmp_path, 60)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = holder(tmp_path, 0)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=60) == 0
    with exclusive(tmp_path / "a.lock", "never printed"):
        pass
