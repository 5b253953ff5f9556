"""The charts of a run's page, each with a sentence about what it shows."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from markupsafe import Markup

from loradag.reporting.charts import MAIN, Chart, Palette, Scale, scale, tick
from loradag.runtime.report_keys import EvaluateReport, PrepareReport, QuantizeReport

POINTS = 200  # of a curve that have a tip on hover, at most


@dataclass(frozen=True)
class Figure:
    title: str
    picture: Markup
    caption: str
    legend: Markup = Markup()


def loss_figure(
    curves: Mapping[int, Mapping[str, float]], evaluate: EvaluateReport | None, part: str = ""
) -> Figure | None:
    """Training loss by step, with the held-out loss before and after.

    Args:
        part: of the held-out rows, those that the loss during the training is over, if not all.
    """
    points = [(float(step), row["loss"]) for step, row in curves.items() if "loss" in row]
    if not points:
        return None
    levels = [(evaluate[name]["nll"], f"held-out, {name}") for name in ("base", "adapter")] \
        if evaluate else []  # fmt: skip
    held_out = [(float(at), row["eval_loss"]) for at, row in curves.items() if "eval_loss" in row]
    values = [y for _, y in points + held_out] + [nll for nll, _ in levels]
    chart = Chart(
        Scale("optimizer step", min(0.0, points[0][0]), max(points[-1][0], 1.0), integers=True),
        scale("loss, nats a token", values),
    )
    smooth = _smoothed(points)
    captions = []
    chart.line(points, MAIN if smooth == points else f"{MAIN} faint")
    if smooth != points:
        chart.line(smooth, MAIN)
        captions.append("Faint: as logged. Bold: moving average.")
    if held_out:
        chart.line(held_out, "c0", "held-out loss")
        over = f", over {part}" if part else ""
        captions.append(f"Orange: held-out loss during the training{over}.")
    for nll, text in levels:  # where the curve is not, and two near levels are legible
        chart.horizontal(nll, text, at_left=text.endswith("adapter"))
    if levels:
        rows = "all held-out rows" if part else "the held-out rows"
        captions.append(f"Dashed: mean loss on {rows}, before and after the training.")
    shown = points[:: -(-len(points) // POINTS)]
    chart.dots(shown, MAIN, [f"step {x:,.0f}: {y:.4g}" for x, y in shown], radius=0)
    tips = [f"step {x:,.0f}: {y:.4g} held out" for x, y in held_out]
    chart.dots(held_out, "c0", tips, radius=4)
    return Figure("Training loss", chart.svg("training loss by step"), " ".join(captions))


def length_figure(prepare: PrepareReport | None) -> Figure | None:
    """The histogram of the rows' lengths."""
    if prepare is None or prepare["token_length"]["histogram"] is None:
        return None
    length, histogram = prepare["token_length"], prepare["token_length"]["histogram"]
    counts, width = histogram["counts"], histogram["width"]
    edges = [i * width for i in range(len(counts) + 1)]
    chart = Chart(
        Scale("tokens a row", 0, edges[-1]), scale("rows", counts, zero=True), width=480, height=270
    )
    chart.bars(edges, counts, "rows")
    chart.vertical(length["p50"], f"median {tick(length['p50'])}")
    chart.vertical(length["p95"], f"95 % {tick(length['p95'])}", down=14)
    return Figure(
        "Length of the rows",
        chart.svg("histogram of row lengths in tokens"),
        f"All prepared rows; the longest has {tick(length['max'])} tokens.",
    )


def layer_figure(quantize: QuantizeReport | None) -> Figure | None:
    """Signal to quantisation noise of every layer, by depth, a line for each kind of matrix."""
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
    chart = Chart(
        scale("layer", [x for x, _ in everything], integers=True, margin=0.02),
        scale("SQNR, dB", [y for _, y in everything]),
    )
    palette = Palette(sorted(by_kind))
    for kind in palette.names:
        points = sorted(by_kind[kind])  # by depth: layer 10 is named before layer 2
        chart.line(points, palette[kind], kind)
        tips = [f"{kind} {tick(x)}: {y:.2f} dB" for x, y in points]
        chart.dots(points, palette[kind], tips, radius=2.5)
    return Figure(
        "Quantisation error by layer",
        chart.svg("signal to quantisation noise ratio by layer"),
        f"Signal to quantisation noise: higher is better, 6 dB are one bit. Over all layers, "
        f"{quantize['scheme']} has {quantize['sqnr_db']:.2f} dB.",
        palette.legend(),
    )


def weight_figure(quantize: QuantizeReport | None) -> Figure | None:
    """The histogram of one layer's weights, with the values that quantisation rounds to."""
    histogram = quantize["histogram"] if quantize else None
    if histogram is None:
        return None
    edges, counts, levels = histogram["edges"], histogram["counts"], histogram["levels"]
    chart = Chart(
        Scale("weight", min(edges[0], *levels), max(edges[-1], *levels)),
        scale("weights", counts, zero=True),
    )
    for level in levels:
        chart.vertical(level)
    chart.bars(edges, counts, "weights")
    return Figure(
        "Weights and the values they are rounded to",
        chart.svg("histogram of weights with the values they are rounded to"),
        f"{histogram['layer']}; dashed: the {len(levels)} values of its first block.",
    )


def _smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The mean over a window of a tenth of the curve around each point."""
    half = len(points) // 20
    windows = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [
        (points[i][0], sum(y for _, y in window) / len(window)) for i, window in enumerate(windows)
    ]
