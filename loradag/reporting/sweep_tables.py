"""The comparison of a sweep's jobs in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loradag.comparison.job_records import JobRecord
from loradag.comparison.ranking import Setting, by_rank, short, verdict_of, winner
from loradag.reporting.formatting import count, duration, number, size

if TYPE_CHECKING:
    from rich.table import Table


def job_table(jobs: Sequence[JobRecord], keys: Sequence[str]) -> Table:
    """A row a job, best first; then what was pruned; failures last."""
    from rich.table import Table
    from rich.text import Text

    names = short(keys)
    table = Table("#", *names, title="The sweep's jobs", title_justify="left")
    for column in ("perplexity", "bytes", "trainable", "run", "cache saved"):
        table.add_column(column, justify="right")
    best = winner(jobs)
    for job in by_rank(jobs):
        swept = [Text(job.swept.get(key, "")) for key in keys]
        if job.failure is not None:
            result = ["[red]failed[/red]", "", ""]
        elif job.pruned is not None:
            result = ["[dim]pruned[/dim]", "", ""]
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

    title = "Over the seeds: mean ± standard deviation"
    table = Table("setting", title=title, title_justify="left")
    for column in ("perplexity", "seeds", "against the best"):
        table.add_column(column, justify="right")
    for setting in ranked:
        spread = "" if setting.spread is None else f" ± {number(setting.spread, 2)}"
        verdict = verdict_of(ranked[0], setting)
        seeds = str(len(setting.perplexities))
        table.add_row(setting.name, number(setting.mean) + spread, seeds, verdict)
    return table
