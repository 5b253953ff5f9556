import os
from pathlib import Path

import pytest

from loradag.planning.grid import composer, expand
from loradag.sweeps.lifecycle import _hash_inputs, _key, _threads

ROOT = Path(__file__).parents[2]

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"]


@pytest.mark.parametrize(
    ("overrides", "jobs", "threads"),
    [
        ([], 12, None),  # one after the other: each has the machine
        (JOBLIB, 12, 2),
        (JOBLIB, 2, 4),
        (["hydra/launcher=joblib"], 12, 1),  # n_jobs=-1: as many as cores
        (["hydra/launcher=submitit_local"], 4, 2),  # all at once
        (["hydra/launcher=submitit_slurm"], 4, None),  # each on a machine of its own
        ([*JOBLIB, "runtime.threads=8"], 12, None),  # the user has chosen
        ([*JOBLIB, "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2"], 0, 4),
    ],
)
def test_jobs_at_once_divide_the_threads(
    overrides: list[str], jobs: int, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LORADAG_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    with composer() as compose:
        assert _threads(compose.master(overrides), jobs) == threads


def test_a_sweep_is_known_by_what_can_change_its_outputs() -> None:
    with composer() as compose:

        def key(*overrides: str, sources: str = "code", **inputs: str) -> str:
            return _key(compose.master(["adapter.r=4,8", *overrides]), sources, inputs)

        assert key() == key("sweep.keep=all") == key(*JOBLIB) == key("runtime.threads=2")
        others = [key("adapter.alpha=8"), key("seed=1,2"), key("sweep.until=export")]
        others += [key(sources="edited"), key(rows="edited")]
        assert len({key(), *others}) == 6


def test_edited_rows_make_another_sweep(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "loradag", "stages"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}")
    with composer() as compose:
        own = ["prepare=file", "prepare.path=rows.jsonl", "prepare.eval_fraction=0.1"]
        config = compose.master([*own, "adapter.r=4,8"])
        jobs = expand(compose, config)
    before = _hash_inputs(jobs, config, tmp_path)
    assert "rows.jsonl" in before
    (tmp_path / "rows.jsonl").write_text("{} ")
    after = _hash_inputs(jobs, config, tmp_path)
    assert {path for path in before if before[path] != after[path]} == {"rows.jsonl"}
