"""The jobs of a sweep against each other: what is better, what is only noise, and the winner."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loradag.comparison.job_records import JobRecord

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


def by_rank(jobs: Sequence[JobRecord]) -> list[JobRecord]:
    """The jobs, best first; then what was pruned; failures last."""
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


def pareto_front(jobs: Sequence[JobRecord], objectives: Mapping[str, str]) -> list[JobRecord]:
    """The complete jobs that no other equals or beats in every objective, by number.

    Args:
        objectives: properties of a record, to "minimize" or to "maximize".
    """
    signs = [1.0 if way == "minimize" else -1.0 for way in objectives.values()]
    losses: dict[int, list[float]] = {}
    for job in jobs:
        values = [getattr(job, name) for name in objectives]
        if job.failure is None and None not in values:
            losses[job.number] = [sign * v for sign, v in zip(signs, values, strict=True)]

    def is_beaten(job: JobRecord) -> bool:
        mine = losses[job.number]
        return any(
            other != mine and all(o <= m for o, m in zip(other, mine, strict=True))
            for other in losses.values()
        )

    return [job for job in jobs if job.number in losses and not is_beaten(job)]


def short(keys: Sequence[str]) -> list[str]:
    """`adapter.r` as `r`, where no other key ends alike."""
    ends = [key.rpartition(".")[2] for key in keys]
    return [end if ends.count(end) == 1 else key for key, end in zip(keys, ends, strict=True)]


def verdict_of(best: Setting, setting: Setting) -> str:
    if setting is best:
        return "best"
    noise = within_noise(best, setting)
    return "too few seeds" if noise is None else "within the noise" if noise else "worse"
