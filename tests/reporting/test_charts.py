import re
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from markupsafe import Markup

from loradag.reporting.charts import (
    COLOURS,
    LABEL,
    MAIN,
    Categories,
    Chart,
    Palette,
    Scale,
    scale,
    standalone,
    tick,
)


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.6, 0.6, [-0.5, -0.25, 0, 0.25, 0.5]),
        (20.1, 20.9, [20.2, 20.4, 20.6, 20.8]),
    ],
)
def test_ticks_are_round_and_within_the_axis(low: float, high: float, ticks: list[float]) -> None:
    assert Scale("", low, high).tick_values() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (1017.9, 1019.1, ["1,018", "1,018.25", "1,018.5", "1,018.75", "1,019"]),
        (999.0, 1000.0, ["999", "999.2", "999.4", "999.6", "999.8", "1,000"]),
        (28_000, 28_020, ["28k", "28.005k", "28.01k", "28.015k", "28.02k"]),
    ],
)
def test_labels_are_exact_however_near_the_ticks_are(
    low: float, high: float, labels: list[str]
) -> None:
    assert [label for _, label in Scale("", low, high).ticks()] == labels


def test_integer_scales_have_integer_ticks() -> None:
    assert Scale("", 0, 1, integers=True).tick_values() == [0, 1]
    assert Scale("", 0, 12, integers=True).tick_values() == [0, 3, 6, 9, 12]


def test_a_logarithmic_scale_has_equal_ratios_at_equal_distances() -> None:
    log = Scale("", 1, 100, log=True)
    assert [log.at(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert log.tick_values() == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert Scale("", 1, 1e6, log=True).tick_values() == pytest.approx([10.0**i for i in range(7)])


def test_scales_contain_their_values() -> None:
    for values in ([3.0, 4.0], [5.0], [0.0], [], [-1.0, float("nan"), 2.0]):
        for log in (False, True):
            made = scale("", values, log=log)
            assert made.low < made.high
            for value in values:
                if value == value and (value > 0 or not log):
                    assert 0 <= made.at(value) <= 1
    assert scale("", [3.0, 9.0], zero=True).low == 0


def test_categories_are_at_equal_distances_in_their_order() -> None:
    ticks = Categories("", ("a", "b")).ticks()
    assert ticks == [(0.25, "a"), (0.75, "b")]


def test_marks_are_within_the_picture_and_in_order() -> None:
    chart = Chart(scale("step", [0, 10]), scale("loss", [2.0, 4.0]))
    left, low = chart.place((0, 2.0))
    right, high = chart.place((10, 4.0))
    assert 0 < left < right < chart.width
    assert 0 < high < low < chart.height, "y grows downwards"


def test_labels_do_not_overlap_or_leave_the_picture() -> None:
    names = [f"category {i}" for i in range(60)]
    chart = Chart(Categories("x", names), Categories("a long title of two rows", ["a", "b"]),
                  height=100)  # fmt: skip
    chart.vertical(names[-1], "at the right end")
    svg = parsed(chart.svg("labels"))
    title = next(text for text in svg.findall("text") if "transform" in text.attrib)
    assert LABEL * len(title.text or "") / 2 <= (chart.top + chart.height - chart.bottom) / 2
    shown = [text for text in svg.findall("text") if (text.text or "").startswith("category")]
    ends = [(float(text.attrib["x"]), LABEL * len(text.text or "") / 2) for text in shown]
    assert len(ends) > 3
    assert all(b - half >= a + other for (a, other), (b, half) in pairwise(ends))
    (note,) = (text for text in svg.findall("text") if text.get("class") == "note")
    assert note.attrib["text-anchor"] == "end"


def test_a_picture_is_well_formed_and_escapes_its_text() -> None:
    chart = Chart(scale("<x>", [1, 2]), scale("a & b", [3, 4]))
    chart.line([(1, 3), (2, 4)], "c0", "<i>")
    chart.dots([(1, 3)], "c1", ["&"])
    chart.bars([1, 1.5, 2], [3.5, 0], "rows")
    chart.horizontal(3.5, "<b>")
    chart.vertical(1.5, "</svg>")
    chart.label((1, 3), "<u>")
    svg = parsed(chart.svg('"quoted"'))
    assert svg.attrib["aria-label"] == '"quoted"'
    assert "<x>" in "".join(svg.itertext())
    bars = [mark for mark in svg.findall("rect") if "bar" in mark.get("class", "")]
    assert len(bars) == 1, "an empty bin has no bar"
    assert parsed(Palette(["<q>", "&"]).legend()).findtext("li") is not None


def test_a_tip_stays_within_the_picture_and_over_all_marks() -> None:
    """The text of a point near the edge is not cut off."""
    long = "x" * 60
    chart = Chart(scale("x", [1, 2]), scale("y", [3, 4]))
    chart.dots([(1, 4), (2, 3)], "c0", [long, long])
    svg = parsed(chart.svg("tips"))
    assert [child.get("class") for child in svg][-2:] == ["tip", "tip"]
    for text in svg.findall("g/text"):
        half = 6.6 * len(long) / 2
        assert half <= float(text.attrib["x"]) <= chart.width - half


def test_a_name_keeps_its_colour_and_one_series_has_the_main_one() -> None:
    names = [f"series {i}" for i in range(COLOURS)]
    palette = Palette(names)
    assert len({palette[name] for name in names}) == COLOURS
    assert [palette[name] for name in names] == [palette[name] for name in names]
    assert Palette(["one"])["one"] == MAIN
    assert Palette(["one"]).legend() == Markup()


def test_every_class_of_a_mark_has_a_style_in_both_modes() -> None:
    chart = Chart(scale("x", [1, 2]), scale("y", [3, 4]))
    chart.dots([(1, 3)], "c0", ["tip"])
    file = standalone(chart.svg("alone"))
    parsed(file)
    light, dark = file.split("prefers-color-scheme: dark", 1)
    for name in (MAIN, *(f"c{i}" for i in range(COLOURS))):
        assert f"--{name}: #" in light
        assert f"--{name}: #" in dark
        assert re.search(rf"\.{name} {{ color: var\(--{name}\); }}", file)
    assert "url(" not in file
    assert "@import" not in file


def test_labels_of_ticks() -> None:
    values = [0, 1e-15, 0.05, 12, 1500, 20_000, 3.2e6, 1e-6]
    assert list(map(tick, values)) == ["0", "0", "0.05", "12", "1,500", "20k", "3.2M", "1e-06"]
