"""Sweeps through a real SLURM: a cluster of one node, started for the test."""

from collections.abc import Iterator

import pytest

from tests.sweeps import slurm
from tests.sweeps.conftest import Toy

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not slurm.is_installed(), reason="SLURM is not installed, or no root"),
]
LAUNCHER = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=test")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What SLURM's commands need in the environment."""
    with slurm.cluster(tmp_path_factory.mktemp("cluster") / "slurm") as environment:
        yield {name: environment[name] for name in ("SLURM_CONF",)}


def test_no_stage_runs_twice_in_jobs_of_slurm(cluster: dict[str, str], toy: Toy) -> None:
    grid = ("adapter.r=4,8", "quantize=nf4,int8", *LAUNCHER, "hydra.launcher.timeout_min=10")
    code, output = toy.sweep(*grid, **cluster)
    assert code == 0, output
    cold = {"prepare": 1, "quantize": 2, "train": 4, "evaluate": 4, "report": 4}
    assert toy.ran() == cold
    code, output = toy.sweep(*grid, **cluster)
    assert code == 0, output
    assert toy.ran() == {"report": 4}
    parents, children = toy.runs()
    assert (len(parents), len(children)) == (1, 4)
