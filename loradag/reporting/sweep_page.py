"""`sweep.html`: the comparison on one page, which loads nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loradag.comparison.job_records import JobRecord
from loradag.comparison.ranking import by_rank, pareto_front, settings, verdict_of, winner
from loradag.reporting import formatting as text
from loradag.reporting.run_page import render
from loradag.reporting.search_figures import search_figures
from loradag.reporting.sweep_figures import figures
from loradag.runtime.report_keys import Reports


def sweep_page(
    name: str,
    jobs: Sequence[JobRecord],
    keys: Sequence[str],
    command: str,
    objectives: Mapping[str, str] | None = None,
    importances: Mapping[str, Mapping[str, float]] | None = None,
    planned: int | None = None,
) -> str:
    """The page. What is filled into it is escaped.

    Args:
        command: promotes the best job.
        objectives: of a search, each with its direction.
        importances: of each objective, the share that each key explains.
        planned: how many jobs there were to be; None: those that came to an end.
    """
    ranked, best = settings(jobs), winner(jobs)
    several = any(len(setting.jobs) > 1 for setting in ranked)
    stages = {stage for job in jobs for stage in job.reports}
    return render(
        "sweep.html.jinja",
        name=name,
        jobs=jobs,
        planned=planned or len(jobs),
        ordered=by_rank(jobs),
        keys=keys,
        done=[job for job in jobs if job.failure is None and job.pruned is None],
        pruned=[job for job in jobs if job.pruned is not None],
        objectives=objectives or {},
        front=pareto_front(jobs, objectives) if objectives and len(objectives) > 1 else [],
        failed=[job for job in jobs if job.failure is not None],
        ran=sum(len(job.ran) for job in jobs),
        seconds=sum(job.seconds for job in jobs),
        saved=sum(job.saved_seconds for job in jobs),
        best=best,
        command=command,
        missing=[stage for stage in Reports.__annotations__ if stage not in stages],
        measured=_measured(jobs),
        seeds=[(s, verdict_of(ranked[0], s)) for s in ranked] if several else [],
        figures=[
            *(search_figures(jobs, objectives, importances or {}) if objectives else []),
            *figures(jobs, ranked),
        ],
        number=text.number,
        count=text.count,
        size=text.size,
        duration=text.duration,
    )


def _measured(jobs: Sequence[JobRecord]) -> dict[str, dict[int, str]]:
    """What `evaluate` measured of the tuned models besides perplexity: name, job, value."""
    columns: dict[str, dict[int, str]] = {}
    for job in jobs:
        evaluate = job.reports.get("evaluate")
        if evaluate is None:
            continue
        if general := evaluate.get("general"):
            column = columns.setdefault("on general text", {})
            column[job.number] = text.number(general["adapter"]["perplexity"])
        tasks = evaluate.get("tasks")
        for task, scores in (tasks["adapter"] if tasks else {}).items():
            for metric, value in scores.items():
                columns.setdefault(f"{task}: {metric}", {})[job.number] = text.number(value)
    return columns
