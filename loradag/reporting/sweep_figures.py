"""The charts of a sweep's page. A colour means the same jobs in each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from loradag.comparison.job_records import JobRecord
from loradag.comparison.ranking import SEED, Setting, pareto
from loradag.reporting.charts import COLOURS, MAIN, Categories, Chart, Palette, Scale, scale
from loradag.reporting.formatting import number
from loradag.reporting.run_figures import Figure

GROUPING = ("model", "quantize")  # what a job is coloured by, where it is swept
CELL = 110, 46  # pixels of a heat map, at most


def figures(jobs: Sequence[JobRecord], ranked: Sequence[Setting]) -> list[Figure]:
    done = [job for job in jobs if job.failure is None and job.perplexity is not None]
    if not done:
        return []
    groups = list(dict.fromkeys(_group(job.swept) for job in done))  # in the sweep's order
    palette = Palette(groups if len(groups) <= COLOURS else [])  # else a colour meant several
    maps = _heat_maps(ranked, palette)
    size = _trade_off(done, palette, "bytes stored, base and adapter", lambda job: job.bytes)
    speed = _trade_off(
        done, palette, "training tokens a second", lambda job: job.tokens_per_second, rising=True
    )
    found = [
        size and Figure("Size and quality", *size),
        speed and Figure("Speed and quality", *speed),
        *(maps or (_by_number(ranked, key, palette) for key in _numeric(ranked))),
        _curves([job for job in done if job.curve], palette),
        *(_by_option(ranked, key, palette) for key in _categories(ranked)),
    ]
    return [figure for figure in found if figure]


def _group(swept: dict[str, str]) -> str:
    """What a job is coloured by: its model and quant type, else its first swept key."""
    named = [swept[key] for key in GROUPING if key in swept]
    if not named:
        named = [f"{key}={value}" for key, value in swept.items() if key != SEED][:1]
    return " ".join(named) or "all"


def _trade_off(
    jobs: Sequence[JobRecord],
    palette: Palette,
    what: str,
    value: Callable[[JobRecord], float | None],
    rising: bool = False,
) -> tuple[Markup, str, Markup] | None:
    """A dot for each job, and the Pareto front; `rising`: more of `what` is better."""
    sign = -1.0 if rising else 1.0
    points = [
        (job, float(x), job.perplexity)
        for job in jobs
        if (x := value(job)) is not None and job.perplexity is not None
    ]
    if not points:
        return None
    chart = Chart(
        scale(what, [x for _, x, _ in points]), scale("perplexity", [y for _, _, y in points])
    )
    front = [(sign * x, y) for x, y in pareto([(sign * x, y) for _, x, y in points])]
    chart.line(front, "front", "Pareto front")
    for job, x, y in points:
        tip = f"#{job.number} {job.name}: {number(y)}"
        chart.dots([(x, y)], palette[_group(job.swept)], [tip], radius=4)
    caption = "A dot for each job. Dotted: the Pareto front, which no job beats in both."
    return chart.svg(f"perplexity against {what}"), caption, palette.legend()


def _curves(jobs: Sequence[JobRecord], palette: Palette) -> Figure | None:
    if not jobs:
        return None
    points = [point for job in jobs for point in job.curve]
    steps = [float(step) for step, _ in points]
    chart = Chart(
        Scale("optimizer step", min(0.0, *steps), max(*steps, 1.0), integers=True),
        scale("loss, nats a token", [loss for _, loss in points]),
    )
    for job in jobs:
        chart.line(job.curve, f"{palette[_group(job.swept)]} thin", f"#{job.number} {job.name}")
    picture = chart.svg("training loss of every job")
    caption = "A line for each job; its name on hover."
    return Figure("Training loss", picture, caption, palette.legend())


def _heat_maps(ranked: Sequence[Setting], palette: Palette) -> list[Figure]:
    """Perplexity by r and alpha, or else by the first two numbers swept; a map for each rest."""
    numeric = _numeric(ranked)
    first = [key for key in ("adapter.r", "adapter.alpha") if key in numeric]
    keys = (first + [key for key in numeric if key not in first])[:2]
    if len(keys) < 2:
        return []
    rests: dict[str, list[Setting]] = {}
    for setting in ranked:
        rest = " ".join(f"{k}={v}" for k, v in setting.swept.items() if k not in keys)
        rests.setdefault(rest, []).append(setting)
    cells = math.prod(len({setting.swept[key] for setting in ranked}) for key in keys)
    if 2 * len(ranked) < cells * len(rests):  # the points of a search, hardly two in a row
        return []
    best, worst = ranked[0].mean, ranked[-1].mean
    return [
        Figure(
            f"Perplexity by {keys[0]} and {keys[1]}" + (f", {rest}" if rest else ""),
            _heat_map(settings, keys[0], keys[1], best, worst, palette),
            "Mean over the seeds; the stronger the colour, the better. All maps share a scale.",
        )
        for rest, settings in sorted(rests.items())
        if len(settings) > 1  # one cell compares nothing
    ]


def _heat_map(
    settings: Sequence[Setting], across: str, up: str, best: float, worst: float, palette: Palette
) -> Markup:
    columns = sorted({setting.swept[across] for setting in settings}, key=float)
    rows = sorted({setting.swept[up] for setting in settings}, key=float)
    chart = Chart(
        Categories(across, columns), Categories(up, rows), height=60 + CELL[1] * len(rows)
    )
    chart.right = max(chart.right, 720 - int(chart.left) - CELL[0] * len(columns))
    groups = {_group(setting.swept) for setting in settings}
    colour = palette[groups.pop()] if len(groups) == 1 else MAIN
    for setting in settings:
        strength = (worst - setting.mean) / (worst - best) if worst > best else 1.0
        chart.cell(
            (setting.swept[across], setting.swept[up]),
            0.06 + 0.5 * strength,
            colour,
            number(setting.mean),
            setting.name,
        )
    return chart.svg(f"perplexity by {across} and {up}")


def _by_number(ranked: Sequence[Setting], key: str, palette: Palette) -> Figure:
    """A dot for each setting over the values of `key`."""
    points = [(float(setting.swept[key]), setting.mean) for setting in ranked]
    values = [x for x, _ in points]
    spreads = min(values) > 0 and max(values) > 20 * min(values)
    chart = Chart(scale(key, values, log=spreads), scale("perplexity", [y for _, y in points]))
    for setting, point in zip(ranked, points, strict=True):
        tip = f"{setting.name}: {number(setting.mean)}"
        chart.dots([point], palette[_group(setting.swept)], [tip], radius=4)
    caption = "A dot for each setting, mean over its seeds."
    return Figure(
        f"Perplexity by {key}", chart.svg(f"perplexity by {key}"), caption, palette.legend()
    )


def _by_option(ranked: Sequence[Setting], key: str, palette: Palette) -> Figure:
    """A row for each option of `key`, the best on top: a dot for each setting."""
    options = list(dict.fromkeys(setting.swept.get(key, "") for setting in ranked))
    chart = Chart(
        scale("perplexity", [setting.mean for setting in ranked]),
        Categories("", options[::-1]),
        height=60 + 34 * len(options),
    )
    for setting in ranked:
        point = (setting.mean, setting.swept.get(key, ""))
        tip = f"{setting.name}: {number(setting.mean)}"
        chart.dots([point], palette[_group(setting.swept)], [tip], radius=4)
    caption = "A dot for each setting, mean over its seeds; the option with the best is on top."
    return Figure(f"Perplexity by {key}", chart.svg(f"perplexity by {key}"), caption)


def _numeric(ranked: Sequence[Setting]) -> list[str]:
    return [key for key in _varied(ranked) if all(_is_number(s.swept.get(key)) for s in ranked)]


def _categories(ranked: Sequence[Setting]) -> list[str]:
    return [key for key in _varied(ranked) if key not in _numeric(ranked)]


def _varied(ranked: Sequence[Setting]) -> list[str]:
    """The keys of which more than one value was measured."""
    return [key for key in ranked[0].swept if len({s.swept.get(key) for s in ranked}) > 1]


def _is_number(text: str | None) -> bool:
    try:
        float(text or "")
    except ValueError:
        return False
    return True
