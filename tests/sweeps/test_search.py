"""Searches by Optuna over the toy pipeline, its stages counted by themselves."""

import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from filelock import FileLock
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from loradag.comparison.job_records import JobRecord
from loradag.config.problems import LoradagError
from loradag.planning.grid import Composer, compose_all, composer
from loradag.runtime import Paths, replacing
from loradag.runtime.stage import mark_started
from loradag.sweeps.job import PRUNE
from loradag.sweeps.search import Search, check_evaluated, read_options
from loradag.sweeps.search_space import read_space
from tests.sweeps.conftest import Toy
from tests.sweeps.test_sweep import PARALLEL, wait_for

SEARCH = ("hydra/sweeper=optuna", "hydra.sweeper.sampler.n_startup_trials=3")
SPACE = ("adapter.r=choice(4,8,16)", "adapter.alpha=range(1,65)")
GRID = (
    "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=median",
    "hydra.sweeper.pruner.n_startup_trials=2", "train.eval_steps=1",
)  # fmt: skip


def study_of(toy: Toy) -> optuna.Study:
    (database,) = toy.root.glob("multirun/*/study.db")
    return optuna.load_study(study_name=None, storage=f"sqlite:///{database}")


def records_of(toy: Toy) -> dict[int, JobRecord]:
    found = [JobRecord.read(path.parent) for path in toy.root.glob("multirun/*/*/job.json")]
    return {job.number: job for job in found}


def complete(study: optuna.Study) -> list[Mapping[str, Any]]:
    return [t.params for t in study.get_trials(states=[optuna.trial.TrialState.COMPLETE])]


def test_the_median_rule_prunes_what_it_should_and_leaves_nothing_wrong(toy: Toy) -> None:
    # Complete: 8, 16 (the first two), then 10 < median(8, 16), 4 < median(8, 10, 16). Pruned: 14
    # above 10 = median(8, 10, 16), 11 above 9 = median(4, 8, 10, 16). From step 2 on.
    alphas = "adapter.alpha=8,16,10,14,4,11"
    sweep = (*GRID, "hydra.sweeper.pruner.n_warmup_steps=2", alphas)
    code, output = toy.sweep(*sweep, TOY_PAUSE="3")
    assert code == 0, output
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 6, "evaluate": 4, "report": 4}
    records = records_of(toy)
    assert {number: job.pruned for number, job in records.items() if job.pruned} == {
        3: "pruned at step 2 by median: held-out loss 3.75",
        5: "pruned at step 2 by median: held-out loss 3.375",
    }
    for number in (3, 5):
        job = records[number]
        assert job.failure is None
        assert job.perplexity is job.bytes is None
        assert job.ran == ["train"]  # of what it shares with others nothing ran
        alpha = int(job.swept["adapter.alpha"])
        assert job.held_out == [[1, 4 + alpha / 8], [2, 2 + alpha / 8]]
    assert "#4" in output
    assert re.search(r"python -m conf .*adapter.alpha=4", output), output
    page = (toy.root / "sweep.html").read_text()
    assert "4 of 6 jobs done, 2 pruned" in page
    assert "Importance for perplexity" in page
    assert "History of perplexity" in page

    parents, children = toy.runs()
    assert [run.info.status for run in parents] == ["FINISHED"]
    assert parents[0].data.metrics["sweep.pruned"] == 2
    statuses = {run.data.tags["adapter.alpha"]: run.info.status for run in children}
    killed = {alpha for alpha, status in statuses.items() if status == "KILLED"}
    assert killed == {"14", "11"}
    assert not list(toy.root.glob("multirun/*/*/workspace"))
    for lock in (toy.root / ".dvc/cache/locks").glob("*.lock"):
        FileLock(lock).acquire(timeout=0).lock.release()

    assert toy.sweep(*sweep, TOY_PAUSE="3")[0] == 0
    assert not toy.ran()  # the study is complete

    code, output = toy.sweep(alphas, "train.eval_steps=1")  # the pruned ones, from the cache
    assert code == 0, output
    assert toy.ran() == {"train": 2, "evaluate": 2, "report": 6}


@pytest.mark.slow
def test_a_trial_is_pruned_in_a_process_that_submitit_started(toy: Toy) -> None:
    # Two at once: 8 and 16 are complete, then 14 is above 12 = median(8, 16), and 4 is not.
    sweep = (*GRID, "hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2",
             "hydra.sweeper.pruner.n_warmup_steps=2", "adapter.alpha=8,16,14,4")  # fmt: skip
    code, output = toy.sweep(*sweep, TOY_PAUSE="5")
    assert code == 0, output
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 4, "evaluate": 3, "report": 3}
    reason = "pruned at step 2 by median: held-out loss 3.75"
    records = records_of(toy)
    assert [records[number].pruned for number in range(4)] == [None, None, reason, None]
    assert len(list(toy.root.glob("multirun/*/.submitit/*/*_0_log.out"))) == 4
    parents, children = toy.runs()
    assert [run.info.status for run in parents] == ["FINISHED"]
    ends = {r.data.tags["adapter.alpha"]: (r.info.status, r.data.tags["sweep.pruned"])
            for r in children}  # fmt: skip
    finished = ("FINISHED", "")
    assert ends == {"8": finished, "16": finished, "14": ("KILLED", reason), "4": finished}


def test_a_killed_search_continues_as_if_it_had_not_been_killed(toy: Toy) -> None:
    sweep = (*SEARCH, *SPACE, "hydra.sweeper.n_trials=6")
    process = toy.start("stages.sweep", "-m", *sweep, TOY_SECONDS="4")
    wait_for(toy.log, "train", times=3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 3, "evaluate": 2, "report": 2}

    code, output = toy.sweep(*sweep)
    assert code == 0, output
    assert toy.ran() == {"train": 4, "evaluate": 4, "report": 4}  # the third again, three more
    continued = complete(study_of(toy))
    assert len(continued) == len(records_of(toy)) == 6
    parents, children = toy.runs()
    assert (len(parents), len(children)) == (1, 6)

    assert toy.sweep(*sweep)[0] == 0
    assert not toy.ran()
    code, output = toy.sweep(*sweep, "hydra.sweeper.n_trials=7")
    assert code == 0, output
    assert toy.ran()["report"] == 1

    for database in toy.root.glob("multirun/*/study.db"):
        database.unlink()
    assert toy.sweep(*sweep)[0] == 0  # without a stop
    assert complete(study_of(toy)) == continued
    assert toy.ran() == {"report": 6}


def test_two_objectives_in_parallel_give_the_pareto_front(toy: Toy) -> None:
    code, output = toy.sweep(
        "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra.sweeper.n_jobs=2", *PARALLEL,
        "hydra.sweeper.objectives=[perplexity,trainable_parameters]",
        "adapter.r=4,8", "adapter.alpha=8,800",
    )  # fmt: skip
    assert code == 0, output
    cold = {"prepare": 1, "quantize": 1, "train": 4, "evaluate": 4, "report": 4}
    assert toy.ran() == cold
    # perplexity 10 + 8/r + alpha/100 + …, parameters 1000 r: alpha=800 is worse at the same size.
    assert "Pareto front of perplexity and trainable_parameters: #0 #2" in output
    front = {tuple(trial.params.items()) for trial in study_of(toy).best_trials}
    assert front == {
        (("adapter.r", "4"), ("adapter.alpha", "8")),
        (("adapter.r", "8"), ("adapter.alpha", "8")),
    }
    assert "Pareto front" in (toy.root / "sweep.html").read_text()


def test_failed_jobs_are_reported_and_run_again(toy: Toy) -> None:
    sweep = (*SEARCH, "hydra/sweeper/sampler=grid", "adapter.r=4,8,16")
    sweep = tuple(o for o in sweep if "n_startup" not in o)
    code, output = toy.sweep(*sweep, TOY_FAILS_AT="8")
    assert code == 1
    assert "#1 adapter.r=8 failed: train: out of memory. Lower train.batch_size." in output
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 3, "evaluate": 2, "report": 2}
    code, output = toy.sweep(*sweep)
    assert code == 0, output
    assert toy.ran() == {"train": 1, "evaluate": 1, "report": 1}
    assert sorted(job.swept["adapter.r"] for job in records_of(toy).values()) == ["16", "4", "8"]


REFUSED = {
    ("hydra.sweeper.pruner=median",): "Choose hydra/sweeper/pruner=none|median|asha",
    ("hydra.sweeper.objectives=[loss]",): "Choose from perplexity, bytes",
    ("hydra.sweeper.objectives=[bytes,bytes]",): "names one twice",
    ("hydra.sweeper.n_trials=0",): "hydra.sweeper.n_trials = 0: must be a whole number from 1",
    ("hydra.sweeper.direction=[minimize,up]",): "Use minimize or maximize for each",
    ("hydra.sweeper.storage=nowhere://x",): "hydra.sweeper.storage = 'nowhere://x': cannot be",
    ("hydra/sweeper/pruner=median", "train.eval_steps=null"):
        "train.eval_steps = None: must be set for pruning",
    ("hydra/sweeper/pruner=asha", "hydra.sweeper.pruner.min_resource=0"):
        "hydra.sweeper.pruner = {'name': 'asha', 'min_resource': 0",
    ("hydra/sweeper/pruner=asha", "hydra.sweeper.objectives=[perplexity,bytes]"):
        "perplexity must be the only objective",
    ("hydra/sweeper/sampler=grid", "adapter.dropout=interval(0,0.5)"): "an interval has no points",
    ("quantize=choice(nf4,nf5)",): "quantize=nf5",
    ("adapter.r=4",): "there is nothing to search",
}  # fmt: skip


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_cannot_be_searched_is_refused(overrides: Sequence[str], tmp_path: Path) -> None:
    with composer() as compose:
        config = compose.master(
            ["hydra/sweeper=optuna", "train.eval_steps=1", "adapter.r=choice(4,8)", *overrides]
        )
        with pytest.raises(LoradagError, match=re.escape(REFUSED[tuple(overrides)])):
            check_and_open(compose, config, tmp_path)


def check_and_open(compose: Composer, config: Any, folder: Path) -> Search:
    options = read_options(config, compose.loader)
    check_evaluated(options, compose_all(compose, options.samples()))
    return Search(options, folder, "study")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra/sweeper/sampler=annealing"], "Could not find 'hydra/sweeper/sampler/annealing'"),
        (["hydra.sweeper.objectives=[loss]"], "Choose from perplexity, bytes"),
    ],
)
def test_nothing_runs_for_a_search_that_is_refused(
    overrides: list[str], message: str, toy: Toy
) -> None:
    code, output = toy.sweep("hydra/sweeper=optuna", "adapter.r=choice(4,8)", *overrides)
    assert code == 1
    assert message in output
    assert "Traceback" not in output
    assert not toy.ran()


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    with composer() as compose:
        search = ["hydra/sweeper=optuna", "adapter.alpha=range(8,33,8)"]
        first = check_and_open(compose, compose.master(search), tmp_path)
        first.study.tell(first.study.ask(first.options.space.distributions), 1.0)
        check_and_open(compose, compose.master(search), tmp_path)
        for other in ("adapter.alpha=range(8,41,8)", "hydra.sweeper.objectives=[bytes,perplexity]"):
            with pytest.raises(LoradagError, match="a study of this name"):
                check_and_open(compose, compose.master([*search, other]), tmp_path)


def test_the_space_is_what_hydra_would_sweep() -> None:
    with composer() as compose:
        overrides = [
            "a=choice(nf4,int8)", "b=range(4,33,4)", "c=range(0.5,2.0,0.5)",
            "d=tag(log,interval(1e-4,1e-2))", "e=int(interval(1,10))", "f=shuffle(z,y)",
            "g=[q_proj,v_proj]",
        ]  # fmt: skip
        master = compose.master(["hydra/sweeper=optuna"])
        master.hydra.overrides.task = overrides
        space = read_space(master, compose.loader, grid=False)
        grid = ["a=choice(nf4,int8)", "b=range(4,13,4)", "g=1"]
        master.hydra.overrides.task = grid
        points = read_space(master, compose.loader, grid=True)
    assert space.distributions == {
        "a": CategoricalDistribution(["nf4", "int8"]),
        "b": IntDistribution(4, 32, step=4),
        "c": FloatDistribution(0.5, 1.5, step=0.5),
        "d": FloatDistribution(1e-4, 1e-2, log=True),
        "e": IntDistribution(1, 10),
        "f": CategoricalDistribution(["y", "z"]),
    }
    assert space.fixed == ("g=[q_proj,v_proj]",)
    jobs = [points.overrides(point) for point in points.points()]
    assert jobs[:2] == [("g=1", "a=nf4", "b=4"), ("g=1", "a=nf4", "b=8")]
    assert len(jobs) == 6


class Ending:
    """A launcher whose jobs leave records at once, as `outcome` says."""

    def __init__(self, folder: Path, outcome: Callable[[dict[str, str]], JobRecord]) -> None:
        self.folder, self.outcome = folder, outcome
        self.launched: list[dict[str, str]] = []

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        for number, overrides in enumerate(batch, start=initial_job_idx):
            given = dict(override.split("=", 1) for override in overrides)
            self.launched.append(given)
            record = self.outcome(given)
            (self.folder / str(number)).mkdir()
            record.write(self.folder / str(number))
        return []


def measured(given: dict[str, str]) -> JobRecord:
    record = JobRecord(0, [], {})
    record.reports = {"evaluate": {"adapter": {"perplexity": float(given["adapter.r"])}}}  # type: ignore[typeddict-item]
    return record


def failed(_: dict[str, str]) -> JobRecord:
    return JobRecord(0, [], {}, failure="train: out of memory.")


class Training(Ending):
    """A launcher whose jobs train for two steps, with a loss of `adapter.r` after each."""

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        for number, overrides in enumerate(batch, start=initial_job_idx):
            given = dict(override.split("=", 1) for override in overrides)
            place, record = self.folder / str(number), measured(given)
            paths = Paths(place / "workspace")
            mark_started(paths, "train")
            paths.eval_loss.parent.mkdir()
            for step in (1, 2):
                if record.pruned is None:
                    record.held_out.append((step, float(given["adapter.r"])))
                    lines = [f"{at},{loss}" for at, loss in record.held_out]
                    with replacing(paths.eval_loss) as partial:
                        partial.write_text("\n".join(["step,eval_loss", *lines]))
                    record.pruned = await_note(place / PRUNE)
            record.write(place)
        return []


def await_note(path: Path, seconds: float = 3) -> str | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists():
            return path.read_text()
        time.sleep(0.05)
    return None


def test_successive_halving_prunes_what_is_not_in_the_better_half_of_its_rung(
    tmp_path: Path,
) -> None:
    # Rung 0 is step 1, rung 1 step 2. 8 is alone at both. 16: not in the better half of (8, 16).
    # 4 is the best at both. 6: in the better half of (4, 6, 8, 16), not in that of (4, 6, 8).
    overrides = [
        "hydra/sweeper=optuna", "hydra/sweeper/sampler=grid", "hydra/sweeper/pruner=asha",
        "hydra.sweeper.pruner.min_resource=1", "hydra.sweeper.pruner.reduction_factor=2",
        "train.eval_steps=1", "adapter.r=8,16,4,6",
    ]  # fmt: skip
    with composer() as compose:
        search = check_and_open(compose, compose.master(overrides), tmp_path)
    search.run(Training(tmp_path, measured))  # type: ignore[arg-type]
    ends = [(trial.state.name, trial.last_step) for trial in search.study.trials]
    assert ends == [("COMPLETE", 2), ("PRUNED", 1), ("COMPLETE", 2), ("PRUNED", 2)]
    assert JobRecord.read(tmp_path / "3").pruned == "pruned at step 2 by asha: held-out loss 6"


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_point_is_run_once_however_often_it_is_asked_for(at_once: int, tmp_path: Path) -> None:
    overrides = ["hydra/sweeper=optuna", f"hydra.sweeper.n_jobs={at_once}", "adapter.r=choice(4,8)"]
    with composer() as compose:
        search = check_and_open(compose, compose.master(overrides), tmp_path)
        launcher = Ending(tmp_path, measured)
        search.run(launcher)  # type: ignore[arg-type]
        assert sorted(given["adapter.r"] for given in launcher.launched) == ["4", "8"]
        assert len(complete(search.study)) == 20
        assert {t.value for t in search.study.trials if t.params["adapter.r"] == "4"} == {4.0}
        again = check_and_open(compose, compose.master(overrides), tmp_path)
        again.run(launcher)  # type: ignore[arg-type]
        assert len(launcher.launched) == 2


def test_what_failed_is_run_again_first(tmp_path: Path) -> None:
    overrides = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "adapter.r=range(1,500)"]
    with composer() as compose:
        search = check_and_open(compose, compose.master(overrides), tmp_path)
        launcher = Ending(tmp_path, failed)
        search.run(launcher)  # type: ignore[arg-type]
        asked, launcher.outcome = list(launcher.launched), measured
        launcher.launched.clear()
        check_and_open(compose, compose.master(overrides), tmp_path).run(launcher)  # type: ignore[arg-type]
        assert launcher.launched == asked
        assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["4", "5", "6", "7"]


def test_a_fixed_storage_and_name_are_used(toy: Toy, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'mine.db'}"
    code, output = toy.sweep(
        "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=1",
        f"hydra.sweeper.storage={storage}", "hydra.sweeper.study_name=mine",
        "train.learning_rate=tag(log,interval(1e-4,1e-2))",
    )  # fmt: skip
    assert code == 0, output
    (trial,) = optuna.load_study(study_name="mine", storage=storage).trials
    assert 1e-4 <= trial.params["train.learning_rate"] <= 1e-2
