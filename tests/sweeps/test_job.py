import subprocess
import sys

import pytest

CHILD = """
import os, sys, time
from loradag.sweeps import job
job._end_with(os.getpid() if {is_sweep} else os.getppid())
print("ready", flush=True)
time.sleep(3)
print("outlived its parent", flush=True)
"""
PARENT = """
import subprocess, sys
subprocess.run([sys.executable, "-c", {child!r}])
"""


@pytest.mark.parametrize("is_sweep", [False, True])
def test_workers_end_with_their_sweep_and_a_sweep_outlives_its_shell(is_sweep: bool) -> None:
    command = PARENT.format(child=CHILD.format(is_sweep=is_sweep))
    parent = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    output = parent.stdout.read()  # until the child, which has the same pipe, has ended
    assert ("outlived" in output) == is_sweep
