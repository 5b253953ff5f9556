"""Every quantiser on the prepared base, side by side: size, error, perplexity, speed.

    dvc repro prepare
    python -m benchmarks.quant_shootout [PART]

Runs the stage `quantize` for each scheme in a temporary folder, loads what it wrote, and measures
it on the held-out rows. No training: what is compared is the frozen base. Writes
`docs/quant_shootout.json` and `docs/quant_shootout.svg`, and prints the table of
`docs/quantization.md`. With PART, only schemes whose names contain it are measured anew.
"""

import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from loradag.comparison.ranking import pareto
from loradag.config.composition import compose, plain
from loradag.config.sections import Config, Runtime
from loradag.config.validation import load_config, validate
from loradag.reporting.charts import MAIN, Chart, Scale, scale, standalone
from loradag.runtime import Paths
from loradag.runtime.environment import configure

GROUPS = " granularity=group group_size=64"  # a scale for each 64 weights, as nf4 has
# Options of `quantize=` with their overrides, by the name in the table.
SCHEMES = {
    **{name: name for name in ("none", "int8", "dynamic_w8a8", "static_w8a8")},
    **{
        f"static_w8a8 {overrides}": f"static_w8a8 {overrides}"
        for overrides in (
            "activation_granularity=tensor activation_zero_point=true",
            "activation_granularity=tensor observer=percentile",
        )
    },
    **{name: name for name in ("nf4", "fp4", "symmetric")},
    "symmetric bits=4": "symmetric bits=4" + GROUPS,
    "symmetric bits=4 granularity=channel": "symmetric bits=4 granularity=channel",
    "symmetric bits=4 granularity=tensor": "symmetric bits=4 granularity=tensor",
    "symmetric bits=3": "symmetric bits=3" + GROUPS,
    "symmetric bits=2": "symmetric bits=2" + GROUPS,
    "asymmetric": "asymmetric",
    **{f"asymmetric bits={bits}": f"asymmetric bits={bits}{GROUPS}" for bits in (4, 3, 2)},
    **{
        f"{scheme} bits={bits} rounding={rounding}": (
            f"{scheme} bits={bits} rounding={rounding} calibration_rows={rows}{GROUPS}"
        )
        for rounding, rows in (("awq", 16), ("gptq", 128))
        for scheme in ("symmetric", "asymmetric")
        for bits in (4, 3)
    },
}
ROWS = 112  # held out, about 4,000 tokens
FOLDS = 14  # of them; their spread is the noise of a difference
RUINED = 1000  # perplexity
LINE, CHARACTER = 13, 6.3  # of a label, in pixels
REPEATS = 5  # of the timed forward pass; the fastest counts


def quantize_config(scheme: str) -> Config:
    option, *overrides = scheme.split()
    changes = [f"quantize.{override}" for override in overrides]
    return validate(plain(compose([f"quantize={option}", *changes])))


def score_folds(model: Any, rows: list[Any], config: Config) -> list[tuple[float, int]]:
    """(sum of NLL, tokens) of each fold of the rows."""
    from loradag.evaluation.perplexity import score

    folds = []
    for start in range(FOLDS):
        scored = score(
            model,
            [row.input_ids for row in rows[start::FOLDS]],
            None,
            window=config.evaluate.window,
            stride=config.evaluate.stride,
            batch_tokens=config.evaluate.batch_tokens,
        )
        folds.append((scored.nll_sum, scored.tokens))
    return folds


def forward_seconds(model: Any, ids: Any) -> float:
    import torch

    started = time.perf_counter()
    with torch.inference_mode():
        model(ids)
    return time.perf_counter() - started


def difference(
    folds: list[tuple[float, int]], base: list[tuple[float, int]]
) -> tuple[float, float]:
    """Mean of NLL − NLL of the base over the folds, nats a token, and its standard error."""
    gaps = [(one - other) / count for (one, count), (other, _) in zip(folds, base, strict=True)]
    return statistics.mean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps))


def run(paths: Paths, config: Config, part: str) -> list[dict[str, Any]]:
    """What was found of the schemes whose names contain `part`."""
    import torch

    from loradag.data.rows import read_rows
    from loradag.models.loading import load_base, load_quantized
    from stages.quantize import quantize

    rows = read_rows(paths.prepared / "eval.parquet")[:ROWS]
    base = load_base(paths, torch.float32)
    ids = torch.tensor([[id for row in rows[:20] for id in row.input_ids][:256]])
    base_folds = score_folds(base, rows, config)
    results = []
    for name, scheme in SCHEMES.items():
        if part not in name:
            continue
        report = quantize(paths, quantize_config(scheme).quantize)
        started = time.perf_counter()
        model = load_quantized(paths, torch.float32)
        loading = time.perf_counter() - started
        folds = base_folds if name == "none" else score_folds(model, rows, config)
        times = [(forward_seconds(model, ids), forward_seconds(base, ids)) for _ in range(REPEATS)]
        gap, error = difference(folds, base_folds)
        nll = sum(total for total, _ in folds) / sum(count for _, count in folds)
        results.append(
            {
                "scheme": name,
                "stored_bits": report["bits_per_weight"],
                "bits": report.get("information_bits_per_weight", report["bits_per_weight"]),
                "megabytes": report["bytes"] / 1e6,
                "sqnr_db": report.get("sqnr_db"),
                "perplexity": math.exp(nll),
                "nll_gap": gap,
                "nll_gap_error": error,
                "speed": min(other for _, other in times) / min(own for own, _ in times),
                "load_seconds": loading,
            }
        )
        print(row(results[-1]), file=sys.stderr)
    return results


def row(result: dict[str, Any]) -> str:
    sqnr = "" if result["sqnr_db"] is None else f"{result['sqnr_db']:.1f}"
    gap = f"{result['nll_gap']:+.4f} ± {result['nll_gap_error']:.4f}"
    cells = [
        result["scheme"],
        f"{result['bits']:.2f}",
        f"{result['stored_bits']:.2f}",
        f"{result['megabytes']:.0f}",
        sqnr,
        f"{result['perplexity']:.4g}",
        "" if result["scheme"] == "none" else gap,
        f"{result['speed']:.2f}",
        f"{result['load_seconds']:.1f}",
    ]
    return f"| {' | '.join(cells)} |"


def table(results: list[dict[str, Any]]) -> str:
    titles = [
        "scheme", "bits a weight", "stored", "MB", "SQNR dB", "perplexity", "ΔNLL nats a token",
        "speed", "load s",
    ]  # fmt: skip
    rule = "|---" + "|---:" * (len(titles) - 1) + "|"
    return "\n".join([f"| {' | '.join(titles)} |", rule, *map(row, results)])


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Perplexity over bits a weight, with the schemes that none beats in both.

    Those that ruin the model are named in its description, not drawn: they would press the others
    together.
    """
    shown = [result for result in results if result["perplexity"] < RUINED]
    ruined = ", ".join(result["scheme"] for result in results if result not in shown)
    chart = Chart(
        Scale("bits a weight, scales included", 2, 18),  # room for the last label
        scale("perplexity", [result["perplexity"] for result in shown], log=True),
        height=560,
    )
    chart.line(pareto([(r["bits"], r["perplexity"]) for r in shown]), "front")
    labels: list[tuple[float, float, float]] = []  # left and right end, height
    for result in sorted(shown, key=lambda each: each["perplexity"]):
        point = (result["bits"], result["perplexity"])
        chart.dots([point], MAIN, [f"{result['scheme']}: {result['perplexity']:.4g}"])
        name, *options = result["scheme"].split()
        values = ", ".join(option.partition("=")[2] for option in options)
        text = f"{name} ({values})" if values else name
        left, own = chart.place(point)
        right, height = left + 12 + CHARACTER * len(text), own
        for others in sorted(labels, key=lambda label: -label[2]):  # from below
            if left < others[1] and others[0] < right and abs(height - others[2]) < LINE:
                height = others[2] - LINE
        labels.append((left, right, height))
        chart.label(point, text, up=own - height)
    picture = chart.svg(f"perplexity over bits a weight; over {RUINED:,}: {ruined}")
    path.write_text(standalone(picture), encoding="utf-8")


def main() -> None:
    config = load_config(Path("params.yaml"))
    configure(Runtime(threads=config.runtime.threads, device="cpu"))
    project, file = Paths(Path()), Path("docs/quant_shootout.json")
    with tempfile.TemporaryDirectory() as name:
        paths = Paths(Path(name))
        for own, theirs in ((paths.base, project.base), (paths.prepared, project.prepared)):
            own.parent.mkdir(parents=True, exist_ok=True)
            own.symlink_to(theirs.resolve())
        found = {result["scheme"]: result for result in run(paths, config, *sys.argv[1:] or [""])}
    if file.exists():
        found = {result["scheme"]: result for result in json.loads(file.read_text())} | found
    results = [found[name] for name in SCHEMES]
    text = json.dumps(results, indent=2, sort_keys=True)
    file.write_text(text + "\n", encoding="utf-8")
    draw(results, Path("docs/quant_shootout.svg"))
    print(table(results))


if __name__ == "__main__":
    main()
