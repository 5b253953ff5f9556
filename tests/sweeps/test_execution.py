"""The lock of a stage, when its holder dies on this host or on another."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loradag.sweeps import execution
from tests.conftest import ROOT

HOLD = """
import socket, sys, time
from pathlib import Path
from loradag.sweeps import execution
execution.LEASE = 3.0
socket.gethostname = lambda: sys.argv[2]
with execution._lock(Path(sys.argv[1]), "train", "key"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(execution, "LEASE", 3.0)
    (tmp_path / ".loradag").mkdir()


@contextmanager
def holder(cache: Path, host: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock, and is on the host of that name as far as it can tell."""
    command = [sys.executable, "-c", HOLD, str(cache), host]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def seconds_to_lock(cache: Path) -> float:
    started = time.monotonic()
    with execution._lock(cache, "train", "key"):
        return time.monotonic() - started


def test_a_lock_of_a_dead_host_passes_on(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with holder(tmp_path, "elsewhere") as process:
        process.kill()
        process.wait()
        assert seconds_to_lock(tmp_path) >= 2, "its host may be alive, for all that is known"
    message = capsys.readouterr().out
    assert f"waits for train: process {process.pid} on elsewhere in {tmp_path} runs it" in message
    assert not Path(execution.WAITING).exists()
    assert seconds_to_lock(tmp_path) < 1


def test_a_lock_of_a_dead_process_on_this_host_passes_on_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with holder(tmp_path, socket.gethostname()) as process:
        process.kill()
        process.wait()
        assert seconds_to_lock(tmp_path) < 1
    assert "waits" not in capsys.readouterr().out


def test_a_lock_of_a_living_process_is_kept_beyond_its_lease(tmp_path: Path) -> None:
    with holder(tmp_path, "elsewhere"):
        waiter = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), "here"],
            env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            waiter.wait(timeout=8)
        assert "on elsewhere" in Path(execution.WAITING).read_text()
        assert '"elsewhere"' in (tmp_path / "locks/key.json").read_text()
        waiter.kill()
        waiter.wait()
