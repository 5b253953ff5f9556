"""Params, reports and the loss curve as MLflow takes them: flat names, text, numbers."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loradag.runtime.report_keys import ExportedFormat, ExportReport, Reports
from loradag.tracking.live import CURVES

VALUE_LIMIT = 6000  # characters of a param; MLflow's own


def run_name(params: Mapping[str, Any]) -> str:
    """What distinguishes the run at a glance, e.g. `gemma-2b nf4 lora r=8 alpha=16`."""
    model, adapter, method = params["model"], params["adapter"], params["train"]["method"]
    parts = [str(model["id"] or model["path"] or model["source"]).rstrip("/").split("/")[-1]]
    if params["quantize"]["scheme"] != "none":
        parts.append(params["quantize"]["scheme"])
    if adapter["variant"] != "none":
        parts += [adapter["variant"], f"r={adapter['r']}", f"alpha={adapter['alpha']:g}"]
    if method != "sft":
        parts.append(method)
    return " ".join(parts)


def flat_params(params: Mapping[str, Any]) -> dict[str, str]:
    """`{"adapter": {"r": 8}}` to `{"adapter.r": "8"}`: text as it is, all else as JSON."""

    def shown(value: Any) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"

    return {key: shown(value) for key, value in leaves(params)}


def flat_metrics(reports: Reports) -> dict[str, float]:
    """Every number of every report as `stage.key`, truth as 0 or 1; lists are left to the files."""
    return {
        key: float(value) for key, value in leaves(reports) if isinstance(value, bool | int | float)
    }


def sized(export: ExportReport) -> ExportReport:
    """The export's report with the `bytes` of each format's weights among its other numbers.

    Its list of files goes by name, and a name holds the model's: no key to compare runs by.
    """

    def weights(name: str) -> int:
        kind, _, type = name.partition("_")
        ending = f"-{type}.gguf" if kind == "gguf" else ".safetensors"
        return sum(
            file["bytes"]
            for file in export["files"]
            # An adapter for a GGUF has a folder of its own, each type of GGUF has not.
            if file["format"] in (kind, name) and file["path"].endswith(ending)
        )

    formats = {
        name: ExportedFormat(**{**measured, "bytes": weights(name)})
        for name, measured in export["formats"].items()
    }
    return {**export, "formats": formats}


def read_curves(*files: Path) -> dict[int, dict[str, float]]:
    """`plots/loss.csv` and `plots/eval_loss.csv` as {step: {metric: value}}."""
    curves: dict[int, dict[str, float]] = {}
    for path in filter(Path.exists, files):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                points = {name: float(row[name]) for name in CURVES if row.get(name)}
                curves.setdefault(int(row["step"]), {}).update(points)
    return curves


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `("a.b", 1)`."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
