"""The jobs of a sweep against each other: what is better, what is only noise, and the winner."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loradag.planning.grid import short, without_unstaged
from loradag.sweeps.job_records import JobRecord

if TYPE_CHECKING:
    from rich.table import Table

SEED = "seed"
SIGNIFICANCE = 0.05  # two-sided


@dataclass(frozen=True)
class Setting:
    """Jobs that differ in nothing but their seed."""

    swept: dict[str, str]  # without the seed
    jobs: list[JobRecord]

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.swept.items()) or "all seeds"

    @property
    def perplexities(self) -> list[float]:
        return [job.perplexity for job in self.jobs if job.perplexity is not None]

    @property
    def mean(self) -> float:
        return statistics.mean(self.perplexities)

    @property
    def spread(self) -> float | None:
        """Sample standard deviation over the seeds."""
        values = self.perplexities
        return statistics.stdev(values) if len(values) > 1 else None


def settings(jobs: Sequence[JobRecord]) -> list[Setting]:
    """The measured settings, best first."""
    found: dict[tuple[tuple[str, str], ...], list[JobRecord]] = {}
    for job in jobs:
        if job.failure is None and job.perplexity is not None:
            without_seed = tuple((k, v) for k, v in job.swept.items() if k != SEED)
            found.setdefault(without_seed, []).append(job)
    return sorted((Setting(dict(k), v) for k, v in found.items()), key=lambda s: s.mean)


def within_noise(a: Setting, b: Setting) -> bool | None:
    """Whether the seeds alone explain the difference, by Welch's t-test; None: too few seeds.

    Welch's, for the spreads of two settings need not be alike.
    """
    if a is b or len(a.perplexities) < 2 or len(b.perplexities) < 2:
        return None
    if a.spread == b.spread == 0.0:
        return a.mean == b.mean
    from scipy.stats import ttest_ind

    return bool(ttest_ind(a.perplexities, b.perplexities, equal_var=False).pvalue > SIGNIFICANCE)


def winner(jobs: Sequence[JobRecord]) -> JobRecord | None:
    """The best job of the best setting."""
    ranked = settings(jobs)
    return by_rank(ranked[0].jobs)[0] if ranked else None


def promote_command(job: JobRecord) -> str:
    """The command that makes `job` the project's own; its outs come from the cache."""
    overrides = map(shlex.quote, without_unstaged(job.overrides))
    return " ".join(["python -m conf", *overrides, "&& dvc repro"])


def by_rank(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs, best first, failures last."""
    return sorted(
        jobs, key=lambda job: (job.failure is not None, job.perplexity or math.inf, job.number)
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, loss) points those that no other equals or beats in both, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, loss in sorted(set(points)):
        if not front or loss < front[-1][1]:
            front.append((cost, loss))
    return front


def job_table(jobs: Sequence[JobRecord], keys: Sequence[str]) -> Table:
    """A row a job, best first, failures last."""
    from rich.table import Table
    from rich.text import Text

    from loradag.reporting.formatting import count, duration, number, size

    names = short(keys)
    table = Table("#", *names, title="The sweep's jobs", title_justify="left")
    for column in ("perplexity", "bytes", "trainable", "run", "cache saved"):
        table.add_column(column, justify="right")
    best = winner(jobs)
    for job in by_rank(jobs):
        swept = [Text(job.swept.get(key, "")) for key in keys]
        if job.failure is not None:
            result = ["[red]failed[/red]", "", ""]
        else:
            result = [
                number(job.perplexity) if job.perplexity is not None else "",
                size(job.bytes) if job.bytes is not None else "",
                count(job.trainable_parameters) if job.trainable_parameters is not None else "",
            ]
        times = [duration(job.seconds), duration(job.saved_seconds)]
        style = "bold green" if job is best else None
        table.add_row(str(job.number), *swept, *result, *times, style=style)
    return table


def seed_table(ranked: Sequence[Setting]) -> Table:
    """A row a setting: mean and spread over its seeds, and whether the best is really better."""
    from rich.table import Table

    from loradag.reporting.formatting import number

    title = "Over the seeds: mean ± standard deviation"
    table = Table("setting", title=title, title_justify="left")
    for column in ("perplexity", "seeds", "against the best"):
        table.add_column(column, justify="right")
    for setting in ranked:
        spread = "" if setting.spread is None else f" ± {number(setting.spread, 2)}"
        verdict = verdict_of(ranked[0], setting)
        count = str(len(setting.perplexities))
        table.add_row(setting.name, number(setting.mean) + spread, count, verdict)
    return table


def verdict_of(best: Setting, setting: Setting) -> str:
    if setting is best:
        return "best"
    noise = within_noise(best, setting)
    return "too few seeds" if noise is None else "within the noise" if noise else "worse"
