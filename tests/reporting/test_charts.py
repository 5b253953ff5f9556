import xml.etree.ElementTree as ElementTree

import pytest

from loradag.reporting.charts import Axis, Frame, axis, legend, tick


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
    assert Axis("", low, high).ticks() == pytest.approx(ticks)


def test_whole_axes_have_whole_ticks() -> None:
    assert Axis("", 0, 1, whole=True).ticks() == [0, 1]
    assert Axis("", 0, 12, whole=True).ticks() == [0, 3, 6, 9, 12]


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances() -> None:
    scale = Axis("", 1, 100, log=True)
    assert [scale.at(value) for value in (1, 10, 100)] == pytest.approx([0, 0.5, 1])
    assert scale.ticks() == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert Axis("", 1, 1e6, log=True).ticks() == pytest.approx([10.0**i for i in range(7)])


def test_axes_hold_their_values() -> None:
    for values in ([3.0, 4.0], [5.0], [0.0], [], [-1.0, float("nan"), 2.0]):
        for log in (False, True):
            scale = axis("", values, log=log)
            assert scale.low < scale.high
            for value in values:
                if value == value and (value > 0 or not log):
                    assert 0 <= scale.at(value) <= 1
    assert axis("", [3.0, 9.0], zero=True).low == 0


def test_marks_stand_within_the_picture_and_in_order() -> None:
    frame = Frame(axis("step", [0, 10]), axis("loss", [2.0, 4.0]))
    left, low = frame.place((0, 2.0))
    right, high = frame.place((10, 4.0))
    assert 0 < left < right < frame.width
    assert 0 < high < low < frame.height, "y grows downwards"


def test_a_picture_is_well_formed_and_escapes_what_it_is_given() -> None:
    frame = Frame(axis("<x>", [1, 2]), axis("a & b", [3, 4]))
    marks = [
        frame.line([(1, 3), (2, 4)], 0, "<i>"),
        frame.dots([(1, 3)], 9, ["&"]),
        frame.bars([1, 1.5, 2], [3.5, 0], 1),
        frame.level(3.5, "<b>"),
        frame.post(1.5, "</svg>"),
    ]
    svg = parsed(frame.draw(marks, '"quoted"'))
    assert svg.attrib["aria-label"] == '"quoted"'
    assert "<x>" in "".join(svg.itertext())
    assert len(svg.findall("rect")) == 1, "an empty bin has no bar"
    assert svg.find("circle").attrib["class"] == "dot c1"  # type: ignore[union-attr]
    assert parsed(legend(["<q>"])).findtext("li") is not None


def test_labels_of_ticks() -> None:
    values = [0, 1e-15, 0.05, 12, 1500, 20_000, 3.2e6, 1e-6]
    assert list(map(tick, values)) == ["0", "0", "0.05", "12", "1,500", "20k", "3.2M", "1e-06"]
