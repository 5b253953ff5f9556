"""Charts as SVG that needs no script: colours from the page's style, values on hover through CSS.

A library for charts would put its own code into every page (Vega-Lite 0.9 MB, Plotly 4.8 MB) and a
script that runs; these charts are a few kilobytes and follow the page into dark mode.

A `Chart` has two axes, each a `Scale` of numbers or `Categories`. Series are coloured by a class of
`charts.css`: `main`, or `c0`, `c1`, … as a `Palette` assigns them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import pairwise
from typing import Any, Protocol

from markupsafe import Markup

MAIN = "main"  # the colour of a chart that has one series
COLOURS = 8  # classes c0 … c7 of charts.css
LABEL = 6.6  # pixels of a character of a label
LONGEST = 30  # characters of a category's label; its tip has the whole name

Value = float | str
Point = tuple[Value, Value]


class Axis(Protocol):
    """Where values lie along an axis: 0 at its start, 1 at its end."""

    @property
    def title(self) -> str: ...

    def at(self, value: Any) -> float: ...

    def ticks(self) -> list[tuple[float, str]]:
        """Positions and their labels."""
        ...


@dataclass(frozen=True)
class Scale:
    """Numbers from `low` to `high`, linear or logarithmic; `integers`: only they have ticks."""

    title: str
    low: float
    high: float
    log: bool = False
    integers: bool = False

    def at(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[tuple[float, str]]:
        """Labels with as many digits as they need to be exact."""
        values = self.tick_values()
        step = min((b - a for a, b in pairwise(values)), default=math.inf)
        digits = next(n for n in range(4, 16) if n == 15 or all(
            abs(float(f"{value:.{n}g}") - value) < step / 100 for value in values
        ))  # fmt: skip
        return [(self.at(value), tick(value, digits)) for value in values]

    def tick_values(self) -> list[float]:
        """About five round values within the scale."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1, 2, 5) if len(decades) <= 3 else (1,)
            values = [step * 10.0**decade for decade in decades for step in steps]
            return [value for value in values if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / 5)
        if self.integers and step != int(step):
            step = float(math.ceil(step))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]


def scale(
    title: str,
    values: Iterable[float],
    log: bool = False,
    zero: bool = False,
    integers: bool = False,
    margin: float = 0.04,
) -> Scale:
    """A scale over all `values` with some margin; from 0 on if `zero`."""
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (float(log), 1.0)
    if log:
        low, high = (low / 1.1, high * 1.1) if low == high else (low, high)
        space = (high / low) ** margin
        return Scale(title, low / space, high * space, log=True)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    space = (high - low) * margin or abs(high) * 0.1 or 1.0
    start = low if zero and low == 0 else low - space
    return Scale(title, start, high + space, integers=integers)


@dataclass(frozen=True)
class Categories:
    """Names at equal distances."""

    title: str
    names: Sequence[str]

    def at(self, value: str) -> float:
        return (self.names.index(value) + 0.5) / len(self.names)

    def ticks(self) -> list[tuple[float, str]]:
        return [
            (self.at(name), name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")
            for name in self.names
        ]


class Palette:
    """A colour for each name, the same in every chart of a page."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def __getitem__(self, name: str) -> str:
        return f"c{self.names.index(name) % COLOURS}" if len(self.names) > 1 else MAIN

    def legend(self) -> Markup:
        """The names, each next to its colour; nothing for a single one."""
        if len(self.names) < 2:
            return Markup()
        items = (
            _tag("li", _tag("span", class_=f"key {self[name]}") + escape(name), class_=self[name])
            for name in self.names
        )
        return Markup(_tag("ul", "".join(items), class_="legend"))


class Chart:
    """A picture of `width` × `height` pixels, filled by its methods and closed by `svg`."""

    right = 16
    top = 14
    bottom = 46

    def __init__(self, x: Axis, y: Axis, width: int = 720, height: int = 280) -> None:
        self.x, self.y, self.width = x, y, width
        self.height = max(height, 40 + math.ceil(LABEL * len(y.title)))  # the title is upright
        self.left = 40 + LABEL * max((len(label) for _, label in y.ticks()), default=0)
        self.grid = True
        self._marks: list[str] = []
        self._tips: list[str] = []  # over all marks, so that none hides them

    def place(self, point: Point) -> tuple[float, float]:
        """The pixel of a pair of values."""
        return self._pixel(self.x.at(point[0]), self.y.at(point[1]))

    def _pixel(self, across: float, up: float) -> tuple[float, float]:
        width = self.width - self.left - self.right
        height = self.height - self.top - self.bottom
        x, y = self.left + across * width, self.height - self.bottom - up * height
        return round(x, 1), round(y, 1)

    def line(self, points: Sequence[Point], colour: str, title: str = "") -> None:
        """A line through `points`; `colour` may add a style, such as `main faint`."""
        places = " ".join("{:g},{:g}".format(*self.place(point)) for point in points)
        line = _tag("polyline", _title(title), class_=f"line {colour}", points=places)
        self._marks.append(line)

    def dots(
        self, points: Sequence[Point], colour: str, tips: Sequence[str], radius: float = 3
    ) -> None:
        """A dot at each point; radius 0: only its tip."""
        for point, text in zip(points, tips, strict=True):
            x, y = self.place(point)
            if radius:
                dot = _tag("circle", class_=f"dot {colour}", cx=x, cy=y, r=radius)
                self._marks.append(dot)
            self._tip(_tag("circle", cx=x, cy=y, r=8), x, y - 10, text)

    def bars(self, edges: Sequence[float], heights: Sequence[float], unit: str) -> None:
        """The bars of a histogram: `heights[i]` of `unit` from `edges[i]` to `edges[i + 1]`."""
        foot = self.height - self.bottom
        for low, high, value in zip(edges[:-1], edges[1:], heights, strict=True):
            if value <= 0:
                continue
            left, top = self.place((low, value))
            width = round(max(self.place((high, value))[0] - left - 0.6, 0.4), 2)
            box: dict[str, Any] = {"x": left, "width": width}
            bar = _tag("rect", class_=f"bar {MAIN}", y=top, height=round(foot - top, 1), **box)
            self._marks.append(bar)
            target = _tag("rect", y=self.top, height=foot - self.top, **box)
            text = f"{tick(low)} to {tick(high)}: {tick(value)} {unit}"
            self._tip(target, left + width / 2, max(top - 5, self.top + 10), text)

    def cell(self, point: Point, strength: float, colour: str, text: str, tip: str) -> None:
        """A cell of a heat map over two `Categories`, its opacity `strength` from 0 to 1."""
        self.grid = False  # the cells are one
        across, up = len(self.x.ticks()), len(self.y.ticks())
        x, y = self.place(point)
        width = (self.width - self.left - self.right) / across - 3
        height = (self.height - self.top - self.bottom) / up - 3
        corner = {"x": round(x - width / 2, 1), "y": round(y - height / 2, 1)}
        size = {"width": round(width, 1), "height": round(height, 1)}
        style = f"fill-opacity:{strength:.2f}"
        self._marks.append(
            _tag("rect", _title(tip), class_=f"bar {colour}", style=style, **corner, **size)
        )
        if LABEL * len(text) <= width:  # else the tip has it
            note = _tag("text", escape(text), class_="note", x=x, y=y + 4, text_anchor="middle")
            self._marks.append(note)

    def horizontal(self, value: float, text: str, at_left: bool = False) -> None:
        """A dashed line at `value` of the y axis, its text at the right or the left end."""
        _, y = self._pixel(0, self.y.at(value))
        end = self.width - self.right
        x, anchor = (self.left + 4, "start") if at_left else (end - 4, "end")
        self._marks.append(
            _tag("line", class_="level", x1=self.left, x2=end, y1=y, y2=y)
            + _tag("text", escape(text), class_="note", x=x, y=y - 5, text_anchor=anchor)
        )

    def vertical(self, value: float, text: str = "", down: float = 0) -> None:
        """A dashed line at `value` of the x axis, its text at the top or `down` pixels below."""
        x, _ = self._pixel(self.x.at(value), 0)
        foot = self.height - self.bottom
        self._marks.append(_tag("line", class_="level", x1=x, x2=x, y1=self.top, y2=foot))
        if text:
            fits = x + 4 + LABEL * len(text) < self.width
            place: dict[str, Any] = {"x": x + 4} if fits else {"x": x - 4, "text_anchor": "end"}
            y = self.top + 10 + down
            self._marks.append(_tag("text", escape(text), class_="note", y=y, **place))

    def label(self, point: Point, text: str, up: float = 0) -> None:
        """`text` to the right of a point, raised by `up` pixels."""
        x, y = self.place(point)
        self._marks.append(_tag("text", escape(text), class_="note", x=x + 7, y=y + 4 - up))

    def svg(self, label: str) -> Markup:
        """The picture; `label` for screen readers."""
        foot, end = self.height - self.bottom, self.width - self.right
        parts = []
        for position, text in self.y.ticks():
            _, y = self._pixel(0, position)
            if self.grid:
                parts.append(_tag("line", class_="grid", x1=self.left, x2=end, y1=y, y2=y))
            parts.append(_tag("text", escape(text), x=self.left - 8, y=y + 4, text_anchor="end"))
        taken = -math.inf  # up to here by labels
        for position, text in self.x.ticks():
            x, _ = self._pixel(position, 0)
            parts.append(_tag("line", class_="grid", x1=x, x2=x, y1=foot, y2=foot + 4))
            half = LABEL * len(text) / 2
            if x - half >= taken:
                parts.append(_tag("text", escape(text), x=x, y=foot + 18, text_anchor="middle"))
                taken = x + half + LABEL
        middle, centre = (self.top + foot) / 2, (self.left + end) / 2
        turned = f"translate(13 {middle}) rotate(-90)"
        parts += [
            _tag("line", class_="axis", x1=self.left, x2=end, y1=foot, y2=foot),
            _tag("text", escape(self.x.title), x=centre, y=self.height - 6, text_anchor="middle"),
            _tag("text", escape(self.y.title), transform=turned, text_anchor="middle"),
        ]
        box = f"0 0 {self.width} {self.height}"
        content = "".join([*parts, *self._marks, *self._tips])
        # On a narrow screen it is scrolled: its letters would be too small.
        style = f"min-width:{round(0.8 * self.width)}px"
        attributes = {"viewBox": box, "style": style, "role": "img", "aria_label": label}
        return Markup(_tag("svg", content, class_="chart", **attributes))

    def _tip(self, target: str, x: float, y: float, text: str) -> None:
        """`text` at a pixel while the pointer is on `target`, which is itself invisible."""
        half = LABEL * len(text) / 2
        x = round(max(half, min(x, self.width - half)), 1)
        shown = _tag("text", escape(text), x=x, y=max(y, 12), text_anchor="middle")
        self._tips.append(_tag("g", target + shown, class_="tip"))


def standalone(svg: Markup) -> str:
    """A file of its own: with the style that a page has for all of its charts."""
    style = files("loradag.reporting").joinpath("charts.css").read_text(encoding="utf-8")
    style += "svg.chart { background: var(--card); }"
    head = '<svg xmlns="http://www.w3.org/2000/svg" '
    first, rest = str(svg).removeprefix("<svg ").split(">", 1)
    return f"{head}{first}><style>\n{style}\n</style>{rest}\n"


def tick(value: float, digits: int = 4) -> str:
    """The label of a value, in significant digits: 0.05, 12, 1,500, 20k, 1e-06."""
    if abs(value) < 1e-12:
        return "0"
    if abs(value) >= 1e4:
        for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= limit:
                return f"{value / limit:.{digits}g}{unit}"
    return f"{float(f'{value:.{digits}g}'):,.15g}"


def _round_step(step: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten from `step` up."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(f * power for f in (1.0, 2.0, 2.5, 5.0, 10.0) if f * power >= step * (1 - 1e-9))


def _tag(name: str, content: str = "", **attributes: Any) -> str:
    """An element; `content` is markup, the attributes are escaped (`class_` is class)."""
    given = "".join(
        f' {key if key == "viewBox" else key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{given}>{content}</{name}>"


def _title(text: str) -> str:
    return _tag("title", escape(text)) if text else ""
