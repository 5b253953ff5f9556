"""The result of a pipeline run, from its reports: shared by the page, the terminal and MLflow.

The report of a stage that did not run is absent; the parts that need it are then left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from loradag.reporting.formatting import change, count, duration, fixed, number, percent, size
from loradag.runtime.report_keys import HeldOutLoss, Reports

ModelName = Literal["base", "quantized", "adapter"]


@dataclass(frozen=True)
class Model:
    """A row of the result table."""

    name: str
    perplexity: float | None
    change: str  # of the perplexity, against the base
    nll: float | None  # nats a token
    bits_per_byte: float | None
    bytes: int | None
    stored: str  # in what precision


@dataclass(frozen=True)
class Check:
    """A number that a stage verified, and its bound if it has one."""

    name: str
    value: str
    bound: str = ""


def model_names(reports: Reports) -> list[ModelName]:
    """The models of a run; without quantization the quantized one is the base itself."""
    quantize = reports.get("quantize")
    if quantize is None or quantize["scheme"] == "none":
        return ["base", "adapter"]
    return ["base", "quantized", "adapter"]


def models(reports: Reports) -> list[Model]:
    """Base, quantized base and adapter, on the same held-out tokens."""
    evaluate, quantize = reports.get("evaluate"), reports.get("quantize")
    stored, sizes = {"base": "16 bits"}, {}
    if quantize is not None:
        scheme = quantize["scheme"]
        stored["quantized"] = f"{scheme}, {quantize['bits_per_weight']:.3g} bits a weight"
        sizes = {"base": quantize["bytes_full"], "quantized": quantize["bytes"]}
    rows = []
    for name in model_names(reports):
        loss: HeldOutLoss | None = evaluate[name] if evaluate is not None else None
        rows.append(
            Model(
                name=name,
                perplexity=loss["perplexity"] if loss else None,
                change=change(evaluate["base"]["perplexity"], loss["perplexity"])
                if evaluate and loss and name != "base"
                else "",
                nll=loss["nll"] if loss else None,
                bits_per_byte=loss["bits_per_byte"] if loss else None,
                bytes=sizes.get(name),
                stored=stored.get(name, ""),
            )
        )
    return rows


def held_out_tokens(reports: Reports) -> str:
    evaluate = reports.get("evaluate")
    return f"{evaluate['base']['tokens']:,} held-out tokens" if evaluate else "held-out tokens"


def trained(reports: Reports) -> str:
    """`2.44 M of 137 M parameters (1.78 %), 60 steps in 3 min 14 s`."""
    train = reports.get("train")
    if train is None:
        return ""
    part, total = train["trainable_parameters"], train["total_parameters"]
    share = f"{count(part)} of {count(total)} parameters ({percent(part / total)})"
    return f"{share}, {train['steps']:,} steps in {duration(train['seconds'] or 0)}"


@dataclass(frozen=True)
class Score:
    """A metric of every model, for a table with a column for each model."""

    name: str
    values: list[str]  # in the order of `model_names`
    change: str  # adapter against base


def general(reports: Reports) -> Score | None:
    """Perplexity on a text outside the tuning data: what the tuning cost."""
    evaluate = reports.get("evaluate")
    if evaluate is None or evaluate["general"] is None:
        return None
    measured = evaluate["general"]
    values = [fixed(measured[name]["perplexity"], 2) for name in model_names(reports)]
    moved = change(measured["base"]["perplexity"], measured["adapter"]["perplexity"])
    return Score("perplexity on general text", values, moved)


def tasks(reports: Reports) -> list[Score]:
    """A row for each metric of each task."""
    evaluate = reports.get("evaluate")
    measured = evaluate["tasks"] if evaluate else None
    if measured is None:
        return []
    rows = []
    for task, metrics in measured["base"].items():
        for metric, before in metrics.items():
            values = [number(measured[name][task][metric]) for name in model_names(reports)]
            gained = measured["adapter"][task][metric] - before
            rows.append(Score(f"{task}: {metric}", values, f"{gained:+.4g}"))
    return rows


def merge_checks(reports: Reports, params: Mapping[str, Any]) -> list[Check]:
    merge, tolerance = reports.get("merge"), params["merge"]["tolerance"]
    if merge is None:
        return []
    before, after = merge["perplexity_before"], merge["perplexity_after"]
    moved = f"{number(before)} → {number(after)} ({change(before, after)})"
    checks = [
        Check("mean KL, nats a token", number(merge["mean_kl"]), f"≤ {tolerance['kl']:g}"),
        Check("perplexity", moved, f"≤ +{percent(tolerance['perplexity'])}"),
    ]
    if (rounding := merge["rounding_kl"]) is not None:
        bound = f"≤ {tolerance['rounding']:g}"
        checks.append(Check("KL by rounding alone, nats a token", number(rounding, 3), bound))
    checks.append(Check("greedy text the same", percent(merge["greedy_match"])))
    checks.append(Check("largest logit difference", number(merge["max_abs_logit_diff"], 3)))
    return checks


@dataclass(frozen=True)
class Exported:
    """A format, and what its runtime computed."""

    name: str
    bytes: int | None  # of its weights
    runtime: str
    perplexity: float
    merged_perplexity: float  # of the merged model, on the same rows
    token_ids_match: bool
    greedy_match: float
    tokens_per_second: float


def exports(reports: Reports) -> list[Exported]:
    export = reports.get("export")
    return [
        Exported(
            name=name.replace("_", " ", 1),
            bytes=measured["bytes"],
            runtime=measured["runtime"],
            perplexity=measured["perplexity"],
            merged_perplexity=measured["merged_perplexity"],
            token_ids_match=measured["token_ids_match"],
            greedy_match=measured["greedy_match"],
            tokens_per_second=measured["tokens_per_second"],
        )
        for name, measured in (export["formats"].items() if export else ())
    ]


@dataclass(frozen=True)
class Stage:
    """A stage of the run."""

    name: str
    status: Literal["ran", "from the cache", "not run"]
    time: str  # that it took, or once took


def stages(reports: Reports, ran: Mapping[str, bool | None]) -> list[Stage]:
    """Every stage that has a report, in the order of the DAG; also those that did not run."""
    rows = []
    for name in Reports.__annotations__:
        report: Any = reports.get(name)
        if report is None:
            rows.append(Stage(name, "not run", ""))
        else:
            seconds = report["seconds"]
            time = "" if seconds is None else duration(seconds)
            rows.append(Stage(name, "ran" if ran[name] else "from the cache", time))
    return rows


def smaller(reports: Reports) -> str:
    """`nf4, 2.42 times smaller than at 16 bits`."""
    quantize = reports.get("quantize")
    if quantize is None or quantize["scheme"] == "none":
        return "at 16 bits"
    full, small = quantize["bytes_full"], quantize["bytes"]
    # A tiny model's scales can weigh more than its weights save.
    ratio, way = (full / small, "smaller") if small <= full else (small / full, "larger")
    return f"{quantize['scheme']}, {ratio:.3g} times {way} than at 16 bits"


def sizes(reports: Reports) -> str:
    """`269 MB → 111 MB: nf4, 2.42 times smaller than at 16 bits`."""
    quantize = reports.get("quantize")
    if quantize is None:
        return ""
    full, small = quantize["bytes_full"], quantize["bytes"]
    if quantize["scheme"] == "none":
        return f"{size(full)} at 16 bits"
    return f"{size(full)} → {size(small)}: {smaller(reports)}"


def note(reports: Reports) -> str:
    """The result as Markdown, for the description of the MLflow run."""
    rows = [
        f"| {model.name} | {fixed(model.perplexity, 2)} | {model.change} |"
        for model in models(reports)
        if model.perplexity is not None
    ]
    head = [f"| on {held_out_tokens(reports)} | perplexity | to base |", "|---|---:|---:|"]
    merge, forgetting = reports.get("merge"), general(reports)
    lines = [
        ("Trained", trained(reports)),
        ("Base", sizes(reports)),
        ("General text", forgetting.change if forgetting else ""),
        ("Merge", "passed" if merge and merge["passed"] else ""),
        ("Not run", ", ".join(name for name in Reports.__annotations__ if name not in reports)),
    ]
    items = [f"- {name}: {text}" for name, text in lines if text]
    return "\n".join([*(head if rows else []), *rows, "", *items])
