"""The charts of a run's page, each with the sentence that says what it shows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from markupsafe import Markup

from loradag.reporting.charts import Axis, Frame, axis, legend, tick
from loradag.runtime.report_keys import EvaluateReport, PrepareReport, QuantizeReport


@dataclass(frozen=True)
class Figure:
    title: str
    picture: Markup
    caption: str
    key: Markup = Markup()


def loss_figure(
    curves: Mapping[int, Mapping[str, float]], evaluate: EvaluateReport | None
) -> Figure | None:
    """Training loss by step, and where the held-out loss stood before and after."""
    points = [(float(step), row["loss"]) for step, row in curves.items() if "loss" in row]
    if not points:
        return None
    levels = (
        [
            (evaluate["base"]["nll"], "held-out, base"),
            (evaluate["adapter"]["nll"], "held-out, adapter"),
        ]
        if evaluate
        else []
    )
    values = [y for _, y in points] + [nll for nll, _ in levels]
    frame = Frame(
        Axis("optimizer step", min(0.0, points[0][0]), max(points[-1][0], 1.0), whole=True),
        axis("loss, nats a token", values),
    )
    smooth = _smoothed(points)
    marks = [frame.line(points, 0, "as logged", faint=smooth != points)]
    captions = []
    if smooth != points:
        marks.append(frame.line(smooth, 0, "moving average"))
        captions.append("Faint: as logged. Bold: moving average.")
    if levels:
        marks += [frame.level(nll, text) for nll, text in levels]
        captions.append("Dashed: mean loss on the held-out rows, before and after the training.")
    return Figure("Training loss", frame.draw(marks, "training loss by step"), " ".join(captions))


def length_figure(prepare: PrepareReport | None) -> Figure | None:
    """The histogram of the rows' lengths."""
    if prepare is None or prepare["token_length"]["histogram"] is None:
        return None
    length, histogram = prepare["token_length"], prepare["token_length"]["histogram"]
    counts, width = histogram["counts"], histogram["width"]
    edges = [i * width for i in range(len(counts) + 1)]
    frame = Frame(
        Axis("tokens a row", 0, edges[-1]), axis("rows", counts, zero=True), width=480, height=270
    )
    marks = [
        frame.bars(edges, counts, 0),
        frame.post(length["p50"], f"median {tick(length['p50'])}"),
        frame.post(length["p95"], f"95 % {tick(length['p95'])}"),
    ]
    return Figure(
        "Length of the rows",
        frame.draw(marks, "histogram of row lengths in tokens"),
        f"All prepared rows; the longest has {tick(length['max'])} tokens.",
    )


def layer_figure(quantize: QuantizeReport | None) -> Figure | None:
    """Signal to quantisation noise of every layer, by depth, a line a kind of matrix."""
    by_kind: dict[str, list[tuple[float, float]]] = {}
    for layer in quantize["layers"] if quantize else []:
        if layer["sqnr_db"] is None:  # nothing was lost in it
            continue
        depth = re.search(r"\.(\d+)\.", layer["name"])
        kind = layer["name"].rsplit(".", 1)[-1]
        by_kind.setdefault(kind, []).append((float(depth[1]) if depth else 0.0, layer["sqnr_db"]))
    if quantize is None or not by_kind:
        return None
    everything = [point for points in by_kind.values() for point in points]
    depths = axis("layer", [x for x, _ in everything], margin=0.02)
    frame = Frame(
        replace(depths, whole=True),
        axis("SQNR, dB", [y for _, y in everything]),
    )
    marks = []
    for i, (kind, unordered) in enumerate(by_kind.items()):
        points = sorted(unordered)  # by depth: layer 10 is named before layer 2
        marks.append(frame.line(points, i, kind))
        marks.append(frame.dots(points, i, [f"{kind} {tick(x)}: {y:.2f} dB" for x, y in points]))
    return Figure(
        "Quantisation error by layer",
        frame.draw(marks, "signal to quantisation noise ratio by layer"),
        f"Signal to quantisation noise: higher is better, 6 dB are one bit. Over all layers, "
        f"{quantize['scheme']} has {quantize['sqnr_db']:.2f} dB.",
        legend(list(by_kind)),
    )


def weight_figure(quantize: QuantizeReport | None) -> Figure | None:
    """The histogram of one layer's weights with the levels that quantisation leaves."""
    histogram = quantize["histogram"] if quantize else None
    if histogram is None:
        return None
    edges, counts, levels = histogram["edges"], histogram["counts"], histogram["levels"]
    frame = Frame(
        Axis("weight", min(edges[0], *levels), max(edges[-1], *levels)),
        axis("weights", counts, zero=True),
    )
    marks = [frame.bars(edges, counts, 0), *(frame.post(level) for level in levels)]
    return Figure(
        "Weights and the levels they are rounded to",
        frame.draw(marks, "histogram of weights with quantisation levels"),
        f"{histogram['layer']}; dashed: its {len(levels)} levels.",
    )


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean over a window of a tenth of the curve around each point."""
    half = len(points) // 20
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [
        (points[i][0], sum(y for _, y in window) / len(window)) for i, window in enumerate(windows)
    ]
