"""The charts of a search: its history, what matters, and the trainings that were ended early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

from loradag.comparison.job_records import JobRecord
from loradag.reporting.charts import MAIN, Categories, Chart, Scale, scale
from loradag.reporting.formatting import number, percent
from loradag.reporting.run_figures import Figure


def search_figures(
    jobs: Sequence[JobRecord],
    objectives: Mapping[str, str],
    importances: Mapping[str, Mapping[str, float]],
) -> list[Figure]:
    """For each objective its history and the importance of each key; the held-out losses."""
    done = [job for job in jobs if job.failure is None and job.pruned is None]
    found = []
    for name, direction in objectives.items():
        found.append(_history(done, name, direction))
        if name in importances:
            found.append(_importance(name, importances[name]))
    found.append(_held_out(jobs))
    return [figure for figure in found if figure is not None]


def _history(jobs: Sequence[JobRecord], name: str, direction: str) -> Figure | None:
    """A dot for each complete job, and the best so far."""
    points = [(float(job.number), float(getattr(job, name))) for job in jobs
              if getattr(job, name) is not None]  # fmt: skip
    if not points:
        return None
    better = min if direction == "minimize" else max
    best = [(x, better(y for _, y in points[: i + 1])) for i, (x, _) in enumerate(points)]
    chart = Chart(
        Scale("job", min(0.0, points[0][0]), max(points[-1][0], 1.0), integers=True),
        scale(name, [y for _, y in points]),
    )
    steps = [best[0]]  # the best stays until the next job
    for before, after in pairwise(best):
        steps += [(after[0], before[1]), after]
    chart.line(steps, MAIN, "best so far")
    tips = [f"#{job.number} {job.name}: {number(getattr(job, name))}" for job in jobs]
    chart.dots(points, MAIN, tips, radius=4)
    caption = "A dot for each complete job, in the order of the search. Line: the best so far."
    return Figure(f"History of {name}", chart.svg(f"{name} by job"), caption)


def _importance(name: str, shares: Mapping[str, float]) -> Figure:
    """A bar for each key, the most important on top."""
    chart = Chart(
        Scale("share of the variance", 0.0, 1.0),
        Categories("", list(shares)[::-1]),
        height=60 + 34 * len(shares),
    )
    for key, share in shares.items():
        chart.line([(0.0, key), (share, key)], MAIN)
        chart.dots([(share, key)], MAIN, [f"{key}: {percent(share)}"], radius=5)
    caption = (
        f"How much of the variance of {name} over the searched space each key explains, by fANOVA "
        "on the complete jobs. With few jobs it is a hint."
    )
    return Figure(f"Importance for {name}", chart.svg(f"importance for {name}"), caption)


def _held_out(jobs: Sequence[JobRecord]) -> Figure | None:
    """The held-out loss during each training; the pruned ones end in a dot."""
    drawn = [job for job in jobs if len(job.held_out) > 1 or (job.held_out and job.pruned)]
    if not drawn:
        return None
    points = [point for job in drawn for point in job.held_out]
    chart = Chart(
        Scale("optimizer step", 0.0, float(max(step for step, _ in points)), integers=True),
        scale("held-out loss, nats a token", [loss for _, loss in points]),
    )
    for job in drawn:
        colour = "c0" if job.pruned else MAIN
        chart.line(job.held_out, f"{colour} thin", f"#{job.number} {job.name}")
        if job.pruned:
            chart.dots(job.held_out[-1:], "c0", [f"#{job.number} {job.name}: {job.pruned}"])
    caption = "A line for each job; its name on hover. A dot: the training was ended there."
    return Figure("Held-out loss during training", chart.svg("held-out loss by step"), caption)
