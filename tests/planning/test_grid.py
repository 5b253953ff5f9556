import pytest
from omegaconf import OmegaConf, open_dict

from loradag.config.composition import plain
from loradag.config.problems import LoradagError
from loradag.planning.grid import (
    composer,
    expand,
    is_grid,
    is_grid_search,
    is_search,
    promote_command,
    sweep_overrides,
    swept_keys,
)

SWEEP = ["experiment=rank_sweep", "quantize=nf4,symmetric", "adapter.dropout=choice(0.0,0.1)"]


def test_jobs_compose_to_what_hydra_composes() -> None:
    with composer() as compose:
        master = compose.master(SWEEP)
        jobs = expand(compose, master)
        assert len(jobs) == 3 * 2 * 2 * 2
        for job in jobs[::7]:
            theirs = compose.loader.load_sweep_config(master, list(job.overrides))
            with open_dict(theirs):
                del theirs["hydra"]
            OmegaConf.resolve(theirs)
            assert job.params == plain(theirs)


def test_what_is_swept_and_what_is_fixed() -> None:
    with composer() as compose:
        master = compose.master([*SWEEP, "train.max_steps=5", "quantize.bits=choice(4,8)"])
    assert swept_keys(master) == [
        "adapter.r", "adapter.alpha", "quantize", "adapter.dropout", "quantize.bits",
    ]  # fmt: skip
    assert "train.max_steps=5" in sweep_overrides(master)


def test_a_rule_is_a_problem_of_its_job_alone() -> None:
    with composer() as compose:
        jobs = expand(compose, compose.master(["adapter.r=4,0"]))
    assert [[problem.key for problem in job.problems] for job in jobs] == [[], ["adapter.r"]]


def test_every_job_that_hydra_refuses_is_listed() -> None:
    with (
        composer() as compose,
        pytest.raises(LoradagError, match=r"(?s)2 of 4 jobs.*r=four quantize=nf4.*quantize=int8"),
    ):
        expand(compose, compose.master(["adapter.r=4,four", "quantize=nf4,int8"]))


def test_a_sweeper_that_chooses_is_no_grid() -> None:
    with composer() as compose:
        assert is_grid(compose.master([]))
        search = compose.master(["hydra/sweeper=optuna"])
        grid = compose.master(["hydra/sweeper=optuna", "hydra/sweeper/sampler=grid"])
        assert not is_grid(search)
        assert is_search(search)
        assert [is_grid_search(search), is_grid_search(grid)] == [False, True]


def test_the_command_that_promotes_a_job_survives_a_shell() -> None:
    overrides = ["adapter.target_modules=[q_proj,v_proj]", "sweep.keep=all"]
    assert promote_command(overrides) == (
        "python -m conf 'adapter.target_modules=[q_proj,v_proj]' && dvc repro"
    )
