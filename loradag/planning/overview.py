"""The plan of a run or a sweep, put together and printed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.errors import HydraException

from loradag.comparison.ranking import short
from loradag.compat.dvc import cache_folder
from loradag.config.problems import ConfigError, LoradagError
from loradag.config.validation import load_config
from loradag.planning.grid import (
    Composer,
    Job,
    composer,
    expand,
    is_grid,
    is_grid_search,
    sweep_overrides,
    swept_keys,
)
from loradag.planning.memory import longest_drawn, merge_bytes, train_bytes
from loradag.planning.parameters import model_shape, total_parameters, trainable_parameters
from loradag.planning.pipeline import Pipeline, Planned, StageStatus
from loradag.planning.shape import Shape

if TYPE_CHECKING:
    from loradag.planning.history import EarlierRun


@dataclass(frozen=True)
class JobPlan:
    """The plan of one job. Sizes are None where the model's shape is not known."""

    swept: dict[str, str]
    params: dict[str, Any]
    stages: list[Planned]
    problems: tuple[Any, ...]  # the rules that it breaks; if any, nothing runs
    prepared: dict[str, Any] | None = None  # the report of `prepare`, if the cache has it
    shape: Shape | None = None
    trainable: int | None = None
    total: int | None = None
    train_bytes: int | None = None
    merge_bytes: int | None = None
    download_bytes: int | None = None  # of the base; None: nothing, or not known


@dataclass(frozen=True)
class Overview:
    """The plan of a run or a sweep."""

    jobs: list[JobPlan]
    keys: list[str]  # that are swept
    trials: int | None  # at most, of a sweeper that chooses its jobs by results


def overview(overrides: list[str], several: bool, project: Path) -> Overview:
    """The plan for `overrides`; without any, for `params.yaml` as `dvc repro` runs it.

    Args:
        overrides: of the command line.
        several: whether they are those of a multirun.
        project: the folder of `dvc.yaml`.

    Raises:
        LoradagError: an override that Hydra refuses, or for a single run a rule that is broken.
    """
    trials = None
    with composer() as compose:
        try:
            if several:
                master = compose.master(overrides)
                keys = swept_keys(master)
                if is_grid(master) or is_grid_search(master):
                    jobs = expand(compose, master)
                else:
                    trials = int(master.hydra.sweeper.get("n_trials", 0))
                    fixed = [o for o in sweep_overrides(master) if o.split("=")[0] not in keys]
                    jobs, keys = [compose.job(fixed)], []
            elif overrides:
                _check_single(compose, overrides)
                keys, jobs = [], [compose.job(overrides)]
            else:
                config = load_config(project / "params.yaml")
                keys, jobs = [], [Job((), asdict(config))]
        except HydraException as error:
            causes = [str(error), str(error.__cause__ or "")]
            raise LoradagError("\n".join(line for line in causes if line)) from error
    if not several and jobs[0].problems:
        raise ConfigError(list(jobs[0].problems), " ".join(overrides) or "the configuration")
    cache = cache_folder(project)
    pipelines: dict[str | None, Pipeline] = {}  # by the last stage
    plans = []
    for job in jobs:
        until = job.params["sweep"]["until"] if several else None
        if until not in pipelines:
            pipelines[until] = Pipeline(project, cache, until, use_lock=not several)
        given = dict(o.lstrip("+").split("=", 1) for o in job.overrides if "=" in o)
        swept = {key: given[key] for key in keys if key in given}
        plans.append(_plan(pipelines[until], swept, job.params, job.problems))
    return Overview(plans, keys, trials)


def _check_single(compose: Composer, overrides: list[str]) -> None:
    if keys := swept_keys(compose.master(overrides)):
        raise LoradagError(f"{keys[0]} has several values, which a sweep takes in turn: add -m.")


def _plan(
    pipeline: Pipeline, swept: dict[str, str], params: dict[str, Any], problems: tuple[Any, ...]
) -> JobPlan:
    if problems:
        return JobPlan(swept, params, [], problems)
    stages = pipeline.plan(params)
    prepared = pipeline.prepared(stages)
    shape = model_shape(params["model"])
    if shape is None:
        return JobPlan(swept, params, stages, (), prepared)
    fetched = any(stage.name == "fetch" and stage.status is StageStatus.CACHED for stage in stages)
    download = params["model"]["source"] == "hub" and not fetched
    longest = longest_drawn(prepared["token_length"], params["train"]) if prepared else None
    return JobPlan(
        swept,
        params,
        stages,
        (),
        prepared,
        shape,
        trainable_parameters(shape, params["adapter"]),
        total_parameters(shape, params["adapter"]),
        train_bytes(shape, params, longest),
        merge_bytes(shape, params, longest),
        2 * shape.parameters if download else None,  # hubs store 16 bits
    )


def print_overview(plan: Overview) -> None:
    """Print a table of the jobs and their stages, then what they need."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from loradag.reporting.formatting import count, percent, size

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, 200)
    several = len(plan.jobs) > 1
    names = list(dict.fromkeys(stage.name for job in plan.jobs for stage in job.stages))
    table = Table(*(["#"] if several else []), *short(plan.keys), *names, box=SIMPLE_HEAD)
    for column in ("trained", "train takes", "merge takes"):
        table.add_column(column, justify="right", no_wrap=True)
    owners: dict[str, int] = {}  # the job that runs a stage, by key
    for number, job in enumerate(plan.jobs):
        row = [str(number)] if several else []
        row += [job.swept.get(key, "") for key in plan.keys]
        statuses = {stage.name: _status_text(stage, owners, number) for stage in job.stages}
        row += [statuses.get(name, "[red]no[/red]") for name in names]
        trained = ""
        if job.trainable is not None and job.total is not None:
            trained = f"{count(job.trainable)} ({percent(job.trainable / job.total)})"
        memory = [size(b) if b is not None else "" for b in (job.train_bytes, job.merge_bytes)]
        table.add_row(*row, trained, *memory)
    console.print(table)
    legend = "run: it runs · cache: it comes from the cache"
    console.print(f"[dim]{legend}{' · #0: job 0 runs it' if several else ''}[/dim]")
    for number, job in enumerate(plan.jobs):
        for problem in job.problems:
            console.print(f"#{number}: {problem}", markup=False)
    if plan.trials is not None:
        chosen = f"The sweeper chooses up to {plan.trials} jobs as results come in"
        console.print(f"{chosen}; above: what is fixed.")
    console.print(_summary(plan.jobs))
    downloads = {job.shape: job.download_bytes for job in plan.jobs if job.download_bytes}
    if downloads:
        console.print(f"Downloads about {size(sum(downloads.values()))} of weights from the hub.")
    if any(job.shape is None and not job.problems for job in plan.jobs):
        console.print(
            "Parameters and memory: the model's config is not known before it is fetched, or "
            "transformers has no such causal language model."
        )


def print_costs(plan: Overview, project: Path) -> None:
    """Print wall time, by earlier runs in MLflow, and disk, by formula."""
    from loradag.planning.disk import stage_bytes
    from loradag.planning.history import earlier_runs, estimate_seconds, train_tokens
    from loradag.reporting.formatting import duration, size
    from loradag.tracking.flattening import flat_params

    runs: dict[str, list[EarlierRun]] = {}  # by model
    seconds, stored, unknown = 0.0, 0.0, Counter[str]()
    for job, stage in _distinct(plan.jobs):
        if stage.status is StageStatus.ALWAYS:
            continue  # `report`, some seconds
        if job.shape is not None:
            stored += stage_bytes(stage.name, job.shape, job.params)
        model = json.dumps(job.params["model"])
        if model not in runs:
            runs[model] = earlier_runs(project, job.params)
        tokens = train_tokens(job.params, job.prepared)
        taken = estimate_seconds(stage.name, flat_params(job.params), tokens, runs[model])
        if taken is None:
            unknown[stage.name] += 1
        seconds += taken or 0
    if seconds:
        print(
            f"Takes about {duration(seconds)}, one stage after another, by the most similar runs "
            "in MLflow" + (f"; without {', '.join(unknown)}, which none has." if unknown else ".")
        )
    elif unknown:
        print("Wall time: not known, for MLflow has no run of this model yet.")
    if stored:
        print(f"Stores about {size(stored)} in the cache.")


def _distinct(jobs: list[JobPlan]) -> Iterator[tuple[JobPlan, Planned]]:
    """The stages that will run: the first of those with equal inputs, and each that always runs."""
    seen = set[str]()
    for job in jobs:
        for stage in job.stages:
            is_new = stage.status is StageStatus.RUNS and stage.key not in seen
            if is_new or stage.status is StageStatus.ALWAYS:
                seen.add(stage.key)
                yield job, stage


def _status_text(stage: Planned, owners: dict[str, int], number: int) -> str:
    if stage.status is StageStatus.CACHED:
        return "[dim]cache[/dim]"
    if stage.status is StageStatus.ALWAYS or owners.setdefault(stage.key, number) == number:
        return "[bold]run[/bold]"
    return f"[dim]#{owners[stage.key]}[/dim]"


def _summary(jobs: list[JobPlan]) -> str:
    """`10 stage runs of 16: ...`: equal inputs run once, `report` in every job."""
    times = Counter(stage.name for _, stage in _distinct(jobs))
    planned = [stage.name for job in jobs for stage in job.stages]
    counts = ", ".join(f"{name} {times[name]}" for name in dict.fromkeys(planned) if times[name])
    return f"{times.total()} stage runs of {len(planned)}" + (f": {counts}." if counts else ".")
