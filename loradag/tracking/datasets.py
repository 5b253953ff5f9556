"""The rows of a run as MLflow's own datasets, so that its UI lists and filters runs by them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loradag.runtime.report_keys import Reports

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

# What MLflow calls the use of a dataset, by split.
CONTEXTS = {"train": "training", "eval": "evaluation", "calibration": "calibration"}
SCHEMA = {
    "input_ids": "integer array", "completion_mask": "integer array",
    "assistant_mask": "integer array", "text": "string", "prompt": "string",
}  # fmt: skip


def dataset_inputs(
    params: Mapping[str, str], reports: Reports, digest: str | None
) -> list[DatasetInput]:
    """An input for each split that has rows.

    Args:
        params: flat.
        reports: by stage; `prepare` has the counts, `source` the commits and versions.
        digest: DVC's hash of the prepared rows; None: nothing identifies them.
    """
    from mlflow.entities import Dataset, DatasetInput, InputTag

    prepared = reports.get("prepare", {})
    if digest is None or not prepared:
        return []
    kind = params["prepare.source"]
    named = [params.get(f"prepare.{key}") for key in ("id", "path")]
    name = next((value for value in named if value not in (None, "null")), kind)
    source = {
        "name": name,
        "origins": reports.get("source", {}).get("origins", {}),
        "split": params.get("prepare.split"),
    }
    schema = json.dumps({"mlflow_colspec": [
        {"name": column, "type": type, "required": True} for column, type in SCHEMA.items()
    ]})  # fmt: skip
    inputs = []
    for split, context in CONTEXTS.items():
        numbers: Mapping[str, Any] = prepared
        counts = {
            key: numbers[f"{split}_{key}"]
            for key in ("rows", "tokens")
            if f"{split}_{key}" in numbers
        }
        if counts.get("rows"):
            dataset = Dataset(
                name=f"{name} ({split})",
                digest=digest,
                source_type={"hub": "hugging_face", "file": "local"}.get(kind, "code"),
                source=json.dumps(source, sort_keys=True),
                schema=schema,
                profile=json.dumps({f"num_{key}": value for key, value in counts.items()}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
    return inputs
