"""The charts of a sweep's page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from markupsafe import Markup

from loradag.comparison.job_records import JobRecord
from loradag.comparison.ranking import SEED, Setting, pareto
from loradag.reporting.charts import Axis, Frame, axis, legend, tick
from loradag.reporting.formatting import number
from loradag.reporting.run_figures import Figure

GROUPING = ("model", "quantize")  # what a job is coloured by, where it is swept


def figures(jobs: Sequence[JobRecord], ranked: Sequence[Setting]) -> list[Figure]:
    done = [job for job in jobs if job.failure is None and job.perplexity is not None]
    if not done:
        return []
    found = [
        _trade_off(done, "Size and quality", "bytes stored, base and adapter", lambda j: j.bytes),
        _trade_off(
            done, "Speed and quality", "training tokens a second", lambda j: j.tokens_per_second,
            more_is_better=True,
        ),
        *_heat_maps(ranked),
        _curves([job for job in jobs if job.curve]),
        *(_by_option(ranked, key) for key in _categories(ranked)),
    ]  # fmt: skip
    return [figure for figure in found if figure is not None]


def _group(job: JobRecord) -> str:
    """The series that a job belongs to: its model and quant type, else its first swept key."""
    named = [job.swept[key] for key in GROUPING if key in job.swept]
    if not named:
        named = [f"{k}={v}" for k, v in job.swept.items() if k != SEED][:1]
    return " ".join(named) or "all"


def _series(jobs: Sequence[JobRecord]) -> list[str]:
    return sorted({_group(job) for job in jobs})


def _trade_off(
    jobs: Sequence[JobRecord],
    title: str,
    what: str,
    value: Callable[[JobRecord], float | None],
    more_is_better: bool = False,
) -> Figure | None:
    """A dot a job, and the Pareto front: what no other job beats in both."""
    sign = -1.0 if more_is_better else 1.0
    points = {job.number: (float(value(job) or 0), job.perplexity or 0.0) for job in jobs
              if value(job) is not None}  # fmt: skip
    if not points:
        return None
    front = [(sign * x, y) for x, y in pareto([(sign * x, y) for x, y in points.values()])]
    xs, ys = zip(*points.values(), strict=True)
    frame = Frame(axis(what, xs), axis("perplexity", ys))
    names = _series(jobs)
    marks = [frame.line(front, len(names), "Pareto front")]
    for i, name in enumerate(names):
        mine = [job for job in jobs if job.number in points and _group(job) == name]
        titles = [f"#{job.number} {job.name}: {number(job.perplexity or 0)}" for job in mine]
        marks.append(frame.dots([points[job.number] for job in mine], i, titles))
    caption = "A dot a job; the line joins those that no other beats in both."
    key = legend([*names, "Pareto front"])
    return Figure(title, frame.draw(marks, f"perplexity against {what}"), caption, key)


def _curves(jobs: Sequence[JobRecord]) -> Figure | None:
    if not jobs:
        return None
    points = [point for job in jobs for point in job.curve]
    steps = [float(step) for step, _ in points]
    frame = Frame(
        Axis("optimizer step", min(0.0, *steps), max(*steps, 1.0)),
        axis("loss, nats a token", [loss for _, loss in points]),
    )
    names = _series(jobs)
    marks = [
        frame.line([(float(x), y) for x, y in job.curve], names.index(_group(job)), job.name)
        for job in jobs
    ]
    picture = frame.draw(marks, "training loss of every job")
    return Figure("Training loss", picture, "A line a job; its name on hover.", legend(names))


def _heat_maps(ranked: Sequence[Setting]) -> list[Figure]:
    """Perplexity by r and alpha, or else by the first two numbers swept; a map for each rest."""
    keys = [key for key in ranked[0].swept if all(_is_number(s.swept.get(key)) for s in ranked)]
    keys = [k for k in ("adapter.r", "adapter.alpha") if k in keys] + [
        k for k in keys if k not in ("adapter.r", "adapter.alpha")
    ]
    if len(keys) < 2:
        return []
    across, down = keys[:2]
    rests: dict[str, list[Setting]] = {}
    for setting in ranked:
        rest = " ".join(f"{k}={v}" for k, v in setting.swept.items() if k not in (across, down))
        rests.setdefault(rest, []).append(setting)
    low, high = ranked[0].mean, ranked[-1].mean
    return [
        Figure(
            f"Perplexity by {across} and {down}" + (f", {rest}" if rest else ""),
            _heat_map(mine, across, down, low, high),
            "Mean over the seeds; the stronger the colour, the better. All maps share a scale.",
        )
        for rest, mine in sorted(rests.items())
    ]


def _heat_map(ranked: Sequence[Setting], across: str, down: str, low: float, high: float) -> Markup:
    columns = sorted({setting.swept[across] for setting in ranked}, key=float)
    rows = sorted({setting.swept[down] for setting in ranked}, key=float, reverse=True)
    width, height, left = min(110, 600 // len(columns)), 44, 90
    whole = (left + width * len(columns) + 10, height * len(rows) + 46)
    label = f"perplexity by {across} and {down}"
    parts = [f'<svg class="chart" viewBox="0 0 720 {whole[1]}" role="img" aria-label="{label}">']
    for setting in ranked:
        x = left + width * columns.index(setting.swept[across])
        y = height * rows.index(setting.swept[down])
        strength = 0.06 + 0.5 * ((high - setting.mean) / (high - low) if high > low else 1.0)
        parts.append(
            f'<rect class="bar c0" x="{x}" y="{y}" width="{width - 3}" height="{height - 3}" '
            f'style="fill-opacity:{strength:.2f}"><title>{escape(setting.name)}</title></rect>'
            f'<text class="note" x="{x + width / 2}" y="{y + height / 2 + 4}" '
            f'text-anchor="middle">{number(setting.mean)}</text>'
        )
    for i, value in enumerate(columns):
        parts.append(
            f'<text class="tick" x="{left + width * (i + 0.5)}" y="{height * len(rows) + 16}" '
            f'text-anchor="middle">{escape(value)}</text>'
        )
    for i, value in enumerate(rows):
        parts.append(
            f'<text class="tick" x="{left - 10}" y="{height * (i + 0.5) + 4}" '
            f'text-anchor="end">{escape(value)}</text>'
        )
    middle = (left + width * len(columns) / 2, height * len(rows) / 2)
    parts.append(
        f'<text class="title" x="{middle[0]}" y="{whole[1] - 8}" text-anchor="middle">'
        f"{escape(across)}</text>"
        f'<text class="title" transform="translate(14 {middle[1]}) rotate(-90)" '
        f'text-anchor="middle">{escape(down)}</text></svg>'
    )
    return Markup("".join(parts))


def _categories(ranked: Sequence[Setting]) -> list[str]:
    return [
        key
        for key in ranked[0].swept
        if not all(_is_number(setting.swept.get(key)) for setting in ranked)
        and len({setting.swept.get(key) for setting in ranked}) > 1
    ]


def _by_option(ranked: Sequence[Setting], key: str) -> Figure:
    """A row an option of `key`, best first: a dot a setting, a bar at the best."""
    options = list(dict.fromkeys(setting.swept.get(key, "") for setting in ranked))
    scale = axis("perplexity", [setting.mean for setting in ranked])
    left, right, height = 170, 700, 34
    foot = height * len(options) + 6
    parts = [
        f'<svg class="chart" viewBox="0 0 720 {foot + 42}" role="img" '
        f'aria-label="perplexity by {escape(key)}">'
    ]
    for value in scale.ticks():
        x = left + scale.at(value) * (right - left)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{foot}"/>'
            f'<text class="tick" x="{x:.1f}" y="{foot + 18}" text-anchor="middle">'
            f"{tick(value)}</text>"
        )
    for i, option in enumerate(options):
        y = height * (i + 0.5)
        parts.append(
            f'<text class="tick" x="{left - 12}" y="{y + 4}" text-anchor="end">'
            f"{escape(option)}</text>"
        )
        for setting in (s for s in ranked if s.swept.get(key, "") == option):
            x = left + scale.at(setting.mean) * (right - left)
            title = f"{setting.name}: {number(setting.mean)}"
            parts.append(
                f'<circle class="dot c{i % 8}" cx="{x:.1f}" cy="{y}" r="4">'
                f"<title>{escape(title)}</title></circle>"
            )
    parts.append(
        f'<text class="title" x="{(left + right) / 2}" y="{foot + 36}" text-anchor="middle">'
        "perplexity</text></svg>"
    )
    caption = "A dot a setting, mean over its seeds; the option with the best one on top."
    return Figure(f"Perplexity by {key}", Markup("".join(parts)), caption)


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True
