"""The merged model as a version in MLflow's model registry, off by default (`export.register`).

The report registers, not the export: an export that came from the cache has executed nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.runtime import Paths

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("accelerate", "mlflow", "torch", "transformers")
FOLDER = "model"
MAX_NEW_TOKENS = 64  # of an answer, where the request does not say


def registry_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Of a run's tags, those that say what a version was made from, beside the run itself."""
    return {
        key: tags[key] for key in ("data", "dvc.lock", "mlflow.source.git.commit") if key in tags
    }


def register(
    client: MlflowClient, paths: Paths, name: str, run_id: str, tags: Mapping[str, str]
) -> str:
    """Log `artifacts/merged` to the run and register it; return the version's number.

    `mlflow models serve -m models:/NAME/VERSION --env-manager local` answers from it, with greedy
    text unless the request's params say otherwise. The run, and `tags`, say what made it. A version
    of the same `dvc.lock` is not made twice.
    """
    import mlflow.transformers
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from transformers import pipeline

    same = [
        known.version
        for known in client.search_model_versions(f"name = '{name}'")
        if "dvc.lock" in tags and known.tags.get("dvc.lock") == tags["dvc.lock"]
    ]
    if same:
        return str(max(same, key=int))
    text = Schema([ColSpec(DataType.string)])
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS),
            ParamSpec("do_sample", DataType.boolean, False),
            ParamSpec("temperature", DataType.double, 1.0),
        ]
    )
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / FOLDER
        mlflow.transformers.save_model(
            transformers_model=pipeline("text-generation", model=str(paths.merged)),
            path=model,
            task="text-generation",
            signature=ModelSignature(inputs=text, outputs=text, params=params),
            pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
        )
        client.log_artifacts(run_id, str(model), FOLDER)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}"
    made = client.create_model_version(name, source, run_id=run_id, tags=dict(tags))
    return str(made.version)
