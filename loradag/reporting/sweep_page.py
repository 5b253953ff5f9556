"""`sweep.html`: the comparison on one sheet, which loads nothing."""

from __future__ import annotations

from collections.abc import Sequence

from loradag.reporting import formatting as text
from loradag.reporting.sweep_figures import figures
from loradag.sweeps.comparison import by_rank, promote_command, settings, verdict_of, winner
from loradag.sweeps.job_records import JobRecord


def sweep_page(name: str, jobs: Sequence[JobRecord], keys: Sequence[str]) -> str:
    """The page; what is filled into it is escaped."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    loaders = [PackageLoader("loradag.sweeps", ""), PackageLoader("loradag.reporting", "")]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    ranked, best = settings(jobs), winner(jobs)
    several = any(len(setting.jobs) > 1 for setting in ranked)
    return environment.get_template("sweep.html.jinja").render(
        name=name,
        jobs=jobs,
        ordered=by_rank(jobs),
        keys=keys,
        done=[job for job in jobs if job.failure is None],
        failed=[job for job in jobs if job.failure is not None],
        ran=sum(len(job.ran) for job in jobs),
        seconds=sum(job.seconds for job in jobs),
        saved=sum(job.saved_seconds for job in jobs),
        best=best,
        command=promote_command(best) if best else "",
        seeds=[(s, verdict_of(ranked[0], s)) for s in ranked] if several else [],
        figures=figures(jobs, ranked),
        number=text.number,
        count=text.count,
        size=text.size,
        duration=text.duration,
    )
