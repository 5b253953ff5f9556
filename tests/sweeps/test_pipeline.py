"""Sweeps over the real pipeline on the tiny model, their stages counted as Python starts them."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.repository import Repository
from tests.sweeps.counting import count_stages

QUICK = (
    "experiment=smoke", "train.max_steps=2", "train.checkpoint_steps=2", "evaluate.samples=0",
    "merge.rows=2", "export=safetensors",
)  # fmt: skip
PARALLEL = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")


class Counted(Repository):
    """A repository that counts the stages which run in it."""

    def __init__(self, root: Path, counting: Path) -> None:
        super().__init__(root)
        self.log = counting / "log"
        count_stages(counting)
        self.environment |= {"PYTHONPATH": str(counting), "COUNTED": str(self.log)}

    def sweep(self, *overrides: str) -> str:
        return self.run(sys.executable, "-m", "stages.sweep", "-m", *QUICK, *overrides)

    def ran(self) -> Counter[str]:
        """How often each stage ran since the last time this was asked."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return Counter(lines)


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    for name in ("project", "counting"):
        (tmp_path / name).mkdir()
    return Counted(tmp_path / "project", tmp_path / "counting")


def cold(jobs: int, quants: int) -> dict[str, int]:
    once = dict.fromkeys(("fetch", "source", "prepare"), 1)
    each = dict.fromkeys(("train", "evaluate", "report"), jobs)
    return once | dict.fromkeys(("quantize", "baseline"), quants) | each


def test_two_by_two_in_parallel_and_warm(counted: Counted) -> None:
    grid = ("adapter.r=2,4", "quantize=nf4,int8")
    counted.sweep(*grid, *PARALLEL)
    assert counted.ran() == cold(jobs=4, quants=2)
    counted.sweep(*grid)
    assert counted.ran() == {"report": 4}
    runs = counted.runs()
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 4
    for child in children:
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "evaluate.adapter.perplexity" in child.data.metrics
        assert child.data.tags["stage.merge"] == "not run"
    perplexities = {child.data.metrics["evaluate.adapter.perplexity"] for child in children}
    assert len(perplexities) == 4

    counted.sweep("adapter.r=4", "quantize=nf4", "sweep.until=export")
    assert counted.ran() == {"merge": 1, "export": 1, "report": 1}
    newest = counted.runs()[0]
    assert "merge.mean_kl" in newest.data.metrics
    assert newest.data.tags["stage.merge"] == "ran"


@pytest.mark.slow
def test_three_by_two_by_two_in_parallel_and_warm(counted: Counted) -> None:
    grid = ("adapter.r=2,4,8", "adapter.alpha=8,16", "quantize=nf4,int8")
    counted.sweep(*grid, *PARALLEL)
    assert counted.ran() == cold(jobs=12, quants=2)
    counted.sweep(*grid, *PARALLEL)
    assert counted.ran() == {"report": 12}
