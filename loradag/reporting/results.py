"""What a pipeline run came to, from its reports: shared by the page and the terminal.

Every report may lack what its options left out, so what is not there is not shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loradag.reporting.formatting import change, count, duration, fixed, number, percent, size

Reports = Mapping[str, dict[str, Any]]


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
    """A number that a stage proved, and the bound that it was held to, if it was."""

    name: str
    value: str
    bound: str = ""


def models(reports: Reports) -> list[Model]:
    """Base, quantized base and adapter, on the same held-out tokens."""
    evaluate, quantize = reports.get("evaluate", {}), reports.get("quantize", {})
    scheme = quantize.get("scheme", "none")
    bits = quantize.get("bits_per_weight")
    stored = {
        "base": "16 bits",
        "quantized": f"{scheme}, {bits:.3g} bits a weight" if bits else scheme,
        "adapter": "",
    }
    sizes = {
        "base": quantize.get("bytes_full"),
        "quantized": quantize.get("bytes"),
        "adapter": None,
    }
    names = ["base", "quantized", "adapter"] if scheme != "none" else ["base", "adapter"]
    before = evaluate.get("base", {}).get("perplexity")
    rows = []
    for name in names:
        measured = evaluate.get(name, {})
        perplexity = measured.get("perplexity")
        compared = name != "base" and before is not None and perplexity is not None
        rows.append(
            Model(
                name=name,
                perplexity=perplexity,
                change=change(before, perplexity) if compared else "",
                nll=measured.get("nll"),
                bits_per_byte=measured.get("bits_per_byte"),
                bytes=sizes[name],
                stored=stored[name],
            )
        )
    return rows


def held_out_tokens(reports: Reports) -> str:
    tokens = reports.get("evaluate", {}).get("base", {}).get("tokens")
    return f"{tokens:,} held-out tokens" if tokens else "held-out tokens"


def trained(reports: Reports) -> str:
    """`2.44 M of 137 M parameters (1.78 %), 60 steps in 3 min 14 s`."""
    train = reports.get("train", {})
    part, whole = train.get("trainable_parameters"), train.get("total_parameters")
    if not part or not whole:
        return ""
    share = f"{count(part)} of {count(whole)} parameters ({percent(part / whole)})"
    return f"{share}, {train['steps']:,} steps in {duration(train['seconds'])}"


def merge_checks(reports: Reports, params: Mapping[str, Any]) -> list[Check]:
    merge, tolerance = reports.get("merge", {}), params["merge"]["tolerance"]
    before, after = merge.get("perplexity_before"), merge.get("perplexity_after")
    checks = []
    if (kl := merge.get("mean_kl")) is not None:
        checks.append(Check("mean KL, nats a token", number(kl), f"≤ {tolerance['kl']:g}"))
    if before is not None and after is not None:
        bound = f"≤ +{percent(tolerance['perplexity'])}"
        moved = f"{number(before)} → {number(after)} ({change(before, after)})"
        checks.append(Check("perplexity", moved, bound))
    if (rounding := merge.get("rounding_kl")) is not None:
        bound = f"≤ {tolerance['rounding']:g}"
        checks.append(Check("KL by rounding alone, nats a token", number(rounding, 3), bound))
    if (match := merge.get("greedy_match")) is not None:
        checks.append(Check("greedy text the same", percent(match)))
    if (diff := merge.get("max_abs_logit_diff")) is not None:
        checks.append(Check("largest logit difference", number(diff, 3)))
    return checks


@dataclass(frozen=True)
class Exported:
    """A format, and what its runtime made of it."""

    name: str
    bytes: int | None  # of its weights
    runtime: str
    perplexity: float | None
    merged_perplexity: float | None  # of what was exported, on the same rows
    token_ids_match: bool | None
    greedy_match: float | None
    tokens_per_second: float | None


def exports(reports: Reports) -> list[Exported]:
    return [
        Exported(
            name=name.replace("_", " ", 1),
            bytes=found.get("bytes"),
            runtime=found.get("runtime", ""),
            perplexity=found.get("perplexity"),
            merged_perplexity=found.get("merged_perplexity"),
            token_ids_match=found.get("token_ids_match"),
            greedy_match=found.get("greedy_match"),
            tokens_per_second=found.get("tokens_per_second"),
        )
        for name, found in reports.get("export", {}).get("formats", {}).items()
    ]


def stage_rows(
    reports: Reports, ran: Mapping[str, bool | None]
) -> list[tuple[str, bool | None, str]]:
    """For each stage: its name, whether it ran, and how long it took or once took.

    False: it came from the cache; None: it is no part of this run.
    """
    seconds = {stage: report.get("seconds") for stage, report in reports.items()}
    return [
        (stage, did, duration(taken) if (taken := seconds.get(stage)) is not None else "")
        for stage, did in ran.items()
    ]


def smaller(reports: Reports) -> str:
    """`nf4, 2.42 times smaller than at 16 bits`."""
    quantize = reports.get("quantize", {})
    full, small = quantize.get("bytes_full"), quantize.get("bytes")
    if not full or not small or quantize.get("scheme") == "none":
        return "at 16 bits"
    # A tiny model's scales can weigh more than its weights save.
    ratio, way = (full / small, "smaller") if small <= full else (small / full, "larger")
    return f"{quantize['scheme']}, {ratio:.3g} times {way} than at 16 bits"


def sizes(reports: Reports) -> str:
    """`269 MB → 111 MB: nf4, 2.42 times smaller than at 16 bits`."""
    quantize = reports.get("quantize", {})
    full, small = quantize.get("bytes_full"), quantize.get("bytes")
    if not full:
        return ""
    if not small or quantize.get("scheme") == "none":
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
    lines = [
        ("Trained", trained(reports)),
        ("Base", sizes(reports)),
        ("Merge", "passed" if reports.get("merge", {}).get("passed") else ""),
    ]
    items = [f"- {name}: {text}" for name, text in lines if text]
    return "\n".join([*(head if rows else []), *rows, "", *items])
