"""`kill -9` at any moment: rerun, the pipeline ends as if it had not been disturbed."""

import pytest

from benchmarks.kill_rounds import run_rounds


@pytest.mark.slow
def test_killed_runs_end_as_undisturbed_ones(tmp_path) -> None:
    """Two rounds; `python -m benchmarks.kill_rounds` runs as many as you like."""
    assert run_rounds(2, seed=1, start="quantize", folder=tmp_path) == 2
