"""Charts as SVG text, for pages that load nothing: colours and fonts come from the page's style.

A chart is a `Frame` (two axes) with marks drawn into it. Series are coloured by their position,
through the classes `c0`, `c1`, … of `shell.html.jinja`; `<title>` elements show values on hover.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

COLOURS = 8  # classes c0 … c7 of the page's style

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic scale from `low` to `high`, with its title; `whole`: of integers."""

    title: str
    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, value: float) -> float:
        """The position of `value`: 0 at `low`, 1 at `high`."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """About five round values within the scale."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 3 else (1,)
            values = [step * 10.0**decade for decade in decades for step in steps]
            return [value for value in values if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / 5)
        if self.whole and step != int(step):
            step = float(math.ceil(step))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def axis(
    title: str, values: Iterable[float], log: bool = False, zero: bool = False, margin: float = 0.04
) -> Axis:
    """An axis that holds all `values` with some margin; from 0 on if `zero`."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (float(log), 1.0)
    if log:
        low, high = (low / 1.1, high * 1.1) if low == high else (low, high)
        space = (high / low) ** margin
        return Axis(title, low / space, high * space, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    space = (high - low) * margin or abs(high) * 0.1 or 1.0
    return Axis(title, low if zero and low == 0 else low - space, high + space)


@dataclass(frozen=True)
class Frame:
    """Two axes in a picture of `width` × `height` pixels."""

    x: Axis
    y: Axis
    width: int = 720
    height: int = 280

    left = 64
    right = 14
    top = 12
    bottom = 44

    def place(self, point: Point) -> Point:
        """Where a value pair stands in the picture."""
        across = self.width - self.left - self.right
        down = self.height - self.top - self.bottom
        return (
            round(self.left + self.x.at(point[0]) * across, 2),
            round(self.height - self.bottom - self.y.at(point[1]) * down, 2),
        )

    def draw(self, marks: Iterable[str], label: str) -> Markup:
        """The picture: grid, ticks, titles, and `marks` over them; `label` for screen readers."""
        foot, end = self.height - self.bottom, self.width - self.right
        parts = [
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{escape(label)}">'
        ]
        for value in self.y.ticks():
            _, y = self.place((self.x.low, value))
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{end}" y1="{y}" y2="{y}"/>'
                f'<text class="tick" x="{self.left - 8}" y="{y + 4}" text-anchor="end">'
                f"{tick(value)}</text>"
            )
        for value in self.x.ticks():
            x, _ = self.place((value, self.y.low))
            parts.append(
                f'<line class="grid" x1="{x}" x2="{x}" y1="{foot}" y2="{foot + 4}"/>'
                f'<text class="tick" x="{x}" y="{foot + 18}" text-anchor="middle">'
                f"{tick(value)}</text>"
            )
        middle = (self.top + foot) / 2
        parts.append(
            f'<line class="axis" x1="{self.left}" x2="{end}" y1="{foot}" y2="{foot}"/>'
            f'<text class="title" x="{(self.left + end) / 2}" y="{self.height - 6}" '
            f'text-anchor="middle">{escape(self.x.title)}</text>'
            f'<text class="title" transform="translate(13 {middle}) rotate(-90)" '
            f'text-anchor="middle">{escape(self.y.title)}</text>'
        )
        return Markup("".join([*parts, *marks, "</svg>"]))

    def line(
        self, points: Sequence[Point], colour: int, title: str = "", faint: bool = False
    ) -> str:
        """A polyline through `points`."""
        places = " ".join("{},{}".format(*self.place(point)) for point in points)
        kind = "line faint" if faint else "line"
        return (
            f'<polyline class="{kind} c{colour % COLOURS}" points="{places}">'
            f"<title>{escape(title)}</title></polyline>"
        )

    def dots(self, points: Sequence[Point], colour: int, titles: Sequence[str]) -> str:
        """A dot at each point, its title on hover."""
        dots = []
        for point, title in zip(points, titles, strict=True):
            x, y = self.place(point)
            dots.append(
                f'<circle class="dot c{colour % COLOURS}" cx="{x}" cy="{y}" r="3">'
                f"<title>{escape(title)}</title></circle>"
            )
        return "".join(dots)

    def bars(self, edges: Sequence[float], heights: Sequence[float], colour: int) -> str:
        """The bars of a histogram: `heights[i]` from `edges[i]` to `edges[i + 1]`."""
        bars = []
        for low, high, value in zip(edges[:-1], edges[1:], heights, strict=True):
            if value <= 0:
                continue
            left, top = self.place((low, value))
            right, _ = self.place((high, value))
            bars.append(
                f'<rect class="bar c{colour % COLOURS}" x="{left}" y="{top}" '
                f'width="{max(right - left - 0.6, 0.4):.2f}" '
                f'height="{self.height - self.bottom - top:.2f}">'
                f"<title>{tick(low)} to {tick(high)}: {tick(value)}</title></rect>"
            )
        return "".join(bars)

    def level(self, value: float, text: str) -> str:
        """A dashed horizontal line at `value`, with its text at the right end."""
        _, y = self.place((self.x.low, value))
        end = self.width - self.right
        return (
            f'<line class="level" x1="{self.left}" x2="{end}" y1="{y}" y2="{y}"/>'
            f'<text class="note" x="{end - 4}" y="{y - 5}" text-anchor="end">{escape(text)}</text>'
        )

    def post(self, value: float, text: str = "") -> str:
        """A dashed vertical line at `value`, with its text at the top."""
        x, _ = self.place((value, self.y.low))
        foot = self.height - self.bottom
        note = f'<text class="note" x="{x + 4}" y="{self.top + 10}">{escape(text)}</text>'
        return f'<line class="level" x1="{x}" x2="{x}" y1="{self.top}" y2="{foot}"/>' + (
            note if text else ""
        )


def legend(names: Sequence[str]) -> Markup:
    """The names of the series, each beside its colour."""
    items = (
        f'<li><span class="key c{i % COLOURS}"></span>{escape(name)}</li>'
        for i, name in enumerate(names)
    )
    return Markup(f'<ul class="legend">{"".join(items)}</ul>')


def tick(value: float) -> str:
    """The label of a value on an axis: 0.05, 12, 1,500, 20k, 1e-06."""
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e4:
        for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= limit:
                return f"{value / limit:.4g}{unit}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten from `step` up."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= step * (1 - 1e-9))
