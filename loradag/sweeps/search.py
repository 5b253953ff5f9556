"""A search: Optuna chooses the jobs of a sweep by the results of earlier ones, and prunes them.

The study is kept in a database, and the trials of a stopped search are not repeated: those that
were running are run again first, then the search continues: what is asked for as trial n depends on
the seed, on n and on the results before it alone.

This process alone writes to the study. While jobs run, whatever process or machine they run on, it
follows the held-out losses that their trainings write, and where a trial is to be pruned it leaves
a note in the job's folder, by which the job ends its training.
"""

from __future__ import annotations

import logging
import shutil
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from loradag.comparison.job_records import OBJECTIVES, JobRecord
from loradag.config.problems import ConfigError, LoradagError, Problem
from loradag.planning.grid import Job
from loradag.runtime import Paths, replacing
from loradag.runtime.stage import has_started
from loradag.sweeps.job import PRUNE, read_curve
from loradag.sweeps.search_space import Point, SearchSpace, read_space

SAMPLERS = {"tpe": TPESampler, "random": RandomSampler, "grid": RandomSampler}  # grid: not asked
PRUNERS = {"none": NopPruner, "median": MedianPruner, "asha": SuccessiveHalvingPruner}
SECONDS = 0.3  # between two looks at the running trainings
DONE = (TrialState.COMPLETE, TrialState.PRUNED)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchOptions:
    """The options of `hydra.sweeper`, checked."""

    objectives: dict[str, str]  # and their directions
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    space: SearchSpace
    trials: int
    at_once: int
    storage: str | None
    study_name: str | None

    @property
    def prunes(self) -> bool:
        return str(self.pruner["name"]) != "none"

    def samples(self) -> list[tuple[str, ...]]:
        """The overrides of jobs to check before any runs; of a grid, all."""
        if self.sampler["name"] != "grid":
            return self.space.samples()
        return [self.space.overrides(point) for point in self.space.points()]

    def make_sampler(self, number: int) -> BaseSampler:
        """The sampler that chooses trial `number`."""
        options = {key: value for key, value in self.sampler.items() if key != "name"}
        if options.get("seed") is not None:
            options["seed"] += number
        return SAMPLERS[self.sampler["name"]](**options)

    def make_pruner(self) -> BasePruner:
        options = {key: value for key, value in self.pruner.items() if key != "name"}
        return PRUNERS[self.pruner["name"]](**options)


def read_options(config: DictConfig, loader: Any) -> SearchOptions:
    """Check the options of a search.

    Raises:
        ConfigError: with every problem of them.
        LoradagError: nothing to search, or a grid over an interval.
    """
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    problems: list[Problem] = []

    def refuse(key: str, rule: str, remedy: str) -> None:
        problems.append(Problem(f"hydra.sweeper.{key}", sweeper[key], rule, remedy))

    for key in ("n_trials", "n_jobs"):
        if type(sweeper[key]) is not int or sweeper[key] < 1:
            refuse(key, "must be a whole number from 1 on", "Use 1 or more.")
    for key, kinds in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if not isinstance(sweeper[key], dict) or sweeper[key].get("name") not in kinds:
            refuse(key, "is no option", f"Choose hydra/sweeper/{key}={'|'.join(kinds)}.")
    given = sweeper["direction"]
    directions = given if isinstance(given, list) else [given] if given else None
    objectives = sweeper["objectives"]
    if objectives is None:
        objectives = ["perplexity", "bytes"][: len(directions or [""])]
    elif isinstance(objectives, str):
        objectives = [objectives]
    if not objectives or any(name not in OBJECTIVES for name in objectives):
        listed = ", ".join(OBJECTIVES)
        refuse("objectives", "must name what a job measures", f"Choose from {listed}.")
    elif len(set(objectives)) < len(objectives):
        refuse("objectives", "names one twice", "Name each once.")
    directions = directions or [OBJECTIVES.get(name, "minimize") for name in objectives]
    if len(directions) != len(objectives) or not set(directions) <= {"minimize", "maximize"}:
        refuse(
            "direction", f"must give one to each of {', '.join(map(str, objectives))}",
            "Use minimize or maximize for each, or null.",
        )  # fmt: skip
    if not problems and sweeper["pruner"]["name"] != "none" and objectives != ["perplexity"]:
        refuse(
            "pruner", "compares held-out losses, so perplexity must be the only objective",
            "Set hydra.sweeper.objectives=[perplexity], or hydra/sweeper/pruner=none.",
        )  # fmt: skip
    if problems:
        raise ConfigError(problems, "hydra/sweeper=optuna")
    space = read_space(config, loader, sweeper["sampler"]["name"] == "grid")
    if not space.distributions:
        raise LoradagError(
            "hydra/sweeper=optuna: there is nothing to search. Give a key several values, such as "
            "'adapter.r=choice(4,8,16)' or 'train.learning_rate=tag(log,interval(1e-4,1e-3))'."
        )
    options = SearchOptions(
        dict(zip(objectives, directions, strict=True)), sweeper["sampler"], sweeper["pruner"],
        space, sweeper["n_trials"], sweeper["n_jobs"], sweeper["storage"], sweeper["study_name"],
    )  # fmt: skip
    makers = {"sampler": lambda: options.make_sampler(0), "pruner": options.make_pruner}
    for key, make in makers.items():
        try:
            make()
        except (TypeError, ValueError, AttributeError) as error:
            refuse(key, f"has an option that Optuna refuses ({error})", "Correct it.")
    if problems:
        raise ConfigError(problems, "hydra/sweeper=optuna")
    return options


def check_evaluated(options: SearchOptions, jobs: list[Job]) -> None:
    """Check that the trainings of `jobs` are evaluated while they run, if they may be pruned.

    Raises:
        ConfigError: one is not.
    """
    if options.prunes and any(job.params["train"]["eval_steps"] is None for job in jobs):
        rule = "must be set for pruning, which compares held-out losses during the training"
        remedy = "Set train.eval_steps, or hydra/sweeper/pruner=none."
        raise ConfigError([Problem("train.eval_steps", None, rule, remedy)], "the search")


class Search:
    """The search of one sweep."""

    def __init__(self, options: SearchOptions, folder: Path, name: str) -> None:
        """Open the study, or create it.

        Args:
            folder: of the sweep.
            name: of the study, if the options name none.

        Raises:
            LoradagError: a storage that cannot be opened, or a study of something else.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.options, self.folder = options, folder
        self.owner = f"{socket.gethostname()}:{folder}"  # of its trials, in a study that is shared
        self.study = open_study(options, folder, name)

    def run(self, launcher: Launcher) -> None:
        """Run trials until the study has as many as it should have."""
        queue = self._prepare()
        if self.options.sampler["name"] == "grid":
            left = len(queue)
        else:
            left = max(self.options.trials - len(self._trials(*DONE)), 0)
        log.info("Study %s: %d trials to run", self.study.study_name, left)
        while left > 0:
            jobs: dict[int, Trial] = {}
            twins: list[Trial] = []  # of jobs of the same batch
            first = 1 + max((t.user_attrs.get("job", -1) for t in self._own()), default=-1)
            while left > 0 and len(jobs) < self.options.at_once:
                trial = self._ask(queue)
                trial.set_user_attr("sweep", self.owner)
                left -= 1
                if self._tell_as_before(trial):
                    continue
                if any(trial.params == job.params for job in jobs.values()):
                    twins.append(trial)
                    continue
                jobs[first + len(jobs)] = trial
                trial.set_user_attr("job", first + len(jobs) - 1)
            if not jobs:
                break
            overrides = [self.options.space.overrides(trial.params) for trial in jobs.values()]
            with self._watching(jobs):
                returns = launcher.launch(overrides, initial_job_idx=first)
            for number, trial in jobs.items():
                self._tell(number, trial)
            for trial in twins:
                if not self._tell_as_before(trial):
                    self.study.tell(trial, state=TrialState.FAIL)
            for job in returns:
                _ = job.return_value  # raises what a job raised
        self._write_results()

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self.study.get_trials(states=states or None)
        return trials

    def _own(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials that this sweep ran, also before it was stopped."""
        return [t for t in self._trials(*states) if self._is_own(t)]

    def _is_own(self, trial: FrozenTrial) -> bool:
        return bool(trial.user_attrs.get("sweep", self.owner) == self.owner)

    def _prepare(self) -> list[Point]:
        """The points that have to be run: of trials that were stopped or failed, or of a grid."""
        for trial in self._trials(TrialState.RUNNING):
            if self._is_own(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
        recorded = {str(trial.user_attrs.get("job")) for trial in self._own(*DONE)}
        for place in self.folder.glob("[0-9]*"):
            if place.name not in recorded:
                shutil.rmtree(place, ignore_errors=True)  # workers may be ending in it
        done = [trial.params for trial in self._trials(*DONE)]
        if self.options.sampler["name"] == "grid":
            points = self.options.space.points()
        else:
            keys = self.options.space.distributions.keys()
            failed = self._own(TrialState.FAIL)
            points = [trial.params for trial in failed if trial.params.keys() == keys]
        return [p for i, p in enumerate(points) if p not in done and p not in points[:i]]

    def _ask(self, queue: list[Point]) -> Trial:
        if queue:
            self.study.enqueue_trial(queue.pop(0), user_attrs={"given": True})
        else:
            sampled = [trial for trial in self._trials() if "given" not in trial.user_attrs]
            self.study.sampler = self.options.make_sampler(len(sampled))
        return self.study.ask(self.options.space.distributions)

    def _tell_as_before(self, trial: Trial) -> bool:
        """End a trial like one of the same point, if there is one; nothing is run for it."""
        for earlier in self._trials(*DONE):
            if earlier.params == trial.params:
                is_pruned = earlier.state == TrialState.PRUNED
                values = None if is_pruned else earlier.values
                self.study.tell(trial, values, state=earlier.state)
                return True
        return False

    def _tell(self, number: int, trial: Trial) -> None:
        """Record in the study how a job ended."""
        try:
            job = JobRecord.read(self.folder / str(number))
        except FileNotFoundError:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        measured = [getattr(job, name) for name in self.options.objectives]
        if job.pruned is not None:
            self.study.tell(trial, state=TrialState.PRUNED)
        elif job.failure is not None or None in measured:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            if self.options.prunes:
                for step, loss in job.held_out[self._reported(trial) :]:
                    trial.report(loss, step)
            self.study.tell(trial, [float(value) for value in measured])

    @contextmanager
    def _watching(self, jobs: Mapping[int, Trial]) -> Iterator[None]:
        """Follow the trainings of `jobs`, if they may be pruned."""
        if not self.options.prunes:
            yield
            return
        ended = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            watch = pool.submit(self._watch, dict(jobs), ended)
            try:
                yield
            finally:
                ended.set()
            watch.result()

    def _watch(self, jobs: dict[int, Trial], ended: threading.Event) -> None:
        while not ended.wait(SECONDS):
            for number, trial in list(jobs.items()):
                place = self.folder / str(number)
                paths = Paths(place / "workspace")
                if not has_started(paths, "train"):  # else its curve comes from the cache
                    continue
                curve = read_curve(paths.eval_loss, "eval_loss")
                for step, loss in curve[self._reported(trial) :]:
                    trial.report(loss, step)
                    if trial.should_prune():
                        rule = self.options.pruner["name"]
                        note = f"pruned at step {step} by {rule}: held-out loss {loss:.4g}"
                        with replacing(place / PRUNE) as partial:
                            partial.write_text(note, encoding="utf-8")
                        del jobs[number]
                        break

    def _reported(self, trial: Trial) -> int:
        """How many held-out losses the study has of a trial."""
        return len(self._trials()[trial.number].intermediate_values)

    def _write_results(self) -> None:
        """Write the best trials, as Hydra's sweepers do."""
        if not self._trials(TrialState.COMPLETE):
            return
        best = [{"params": t.params, "values": t.values} for t in self.study.best_trials]
        result: dict[str, Any] = {"name": "optuna"}
        if len(self.options.objectives) == 1:
            result |= {"best_params": best[0]["params"], "best_value": best[0]["values"][0]}
        else:
            result["solutions"] = best
        OmegaConf.save(OmegaConf.create(result), self.folder / "optimization_results.yaml")

    def importances(self) -> dict[str, dict[str, float]]:
        """Of each objective the shares of its variance that each key explains, by fANOVA.

        Only where there are enough complete trials that differ.
        """
        found: dict[str, dict[str, float]] = {}
        for index, name in enumerate(self.options.objectives):
            try:
                found[name] = optuna.importance.get_param_importances(
                    self.study,
                    evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0),
                    target=lambda trial, index=index: trial.values[index],
                )
            except (ValueError, RuntimeError):  # too few trials, or all alike
                continue
        return {name: shares for name, shares in found.items() if sum(shares.values()) > 0}


def open_study(options: SearchOptions, folder: Path, name: str) -> optuna.Study:
    """The study of the options, continued or new."""
    from sqlalchemy.exc import SQLAlchemyError

    from loradag.tracking.store import shown_uri

    storage = options.storage or f"sqlite:///{folder / 'study.db'}"
    try:
        study = optuna.create_study(
            study_name=options.study_name or name,
            storage=storage,
            sampler=options.make_sampler(0),
            pruner=options.make_pruner(),
            directions=list(options.objectives.values()),
            load_if_exists=True,
        )
    except (SQLAlchemyError, ImportError, RuntimeError, optuna.exceptions.OptunaError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise LoradagError(
            f"hydra.sweeper.storage = {shown_uri(storage)!r}: cannot be opened: {reason}. Give the "
            "URL of a database as SQLAlchemy takes it, such as sqlite:///study.db, or null."
        ) from error
    known: dict[str, Any] = {}
    for trial in study.trials:
        known |= trial.distributions
    directions = [direction.name.lower() for direction in study.directions]
    if directions != list(options.objectives.values()) or any(
        known.get(key, kind) != kind for key, kind in options.space.distributions.items()
    ):
        raise LoradagError(
            f"hydra.sweeper.study_name = {study.study_name!r}: the storage has a study of this "
            "name with other objectives or another search space. Choose another name."
        )
    return study
