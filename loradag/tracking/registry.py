"""Models in MLflow's model registry, off by default (`export.register`).

The report registers, not the export: an export that came from the cache has executed nothing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.runtime import Paths

if TYPE_CHECKING:
    from mlflow import MlflowClient

REQUIREMENTS = ("accelerate", "mlflow", "torch", "transformers")
MAX_NEW_TOKENS = 64  # of an answer, where the request does not set it
CHAMPION = "champion"  # the alias of the version that won a sweep
WINNER_TAG = "sweep.winner"  # on a sweep's run: the training key of its winner


def registry_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Of a run's tags, those that record what a version was made from, besides the run itself."""
    return {
        key: tags[key] for key in ("data", "dvc.lock", "mlflow.source.git.commit") if key in tags
    }


def register(
    client: MlflowClient, paths: Paths, name: str, run_id: str, tags: Mapping[str, str]
) -> str:
    """Log `artifacts/merged` to the run and register it; return the version's number.

    `mlflow models serve -m models:/NAME/VERSION --env-manager local` answers from it, with greedy
    text unless the request's params ask for sampling. The run, and `tags`, record what made it. A
    version of the same `dvc.lock` is not made twice.
    """
    from transformers import pipeline

    def save(folder: Path) -> None:
        _save(folder, pipeline("text-generation", model=str(paths.merged)), REQUIREMENTS)

    return _register(client, name, "model", run_id, tags, save)


def register_adapter(
    client: MlflowClient, paths: Paths, name: str, run_id: str, tags: Mapping[str, str]
) -> str:
    """Log `artifacts/adapter` in MLflow's PEFT form and register it; return the version's number.

    The version holds the adapter and the tokenizer, and refers to the folder of the base that the
    adapter was trained on. With a copy of that base elsewhere, load it by
    `mlflow.transformers.load_model(..., base_model_path=FOLDER)`.
    """
    import torch
    from peft import PeftModel

    from loradag.models.loading import is_quantized, load_quantized
    from loradag.models.pinning import weights_folder
    from loradag.models.tokenizer import load_tokenizer

    def save(folder: Path) -> None:
        quantized = is_quantized(paths)
        base = paths.quantized if quantized else weights_folder(paths.base)
        tuned = PeftModel.from_pretrained(load_quantized(paths, torch.float32), paths.adapter)
        parts = {"model": tuned, "tokenizer": load_tokenizer(paths.base)}
        requirements = (*REQUIREMENTS, "peft", *(("bitsandbytes", "torchao") if quantized else ()))
        _save(folder, parts, requirements, base_model_path=str(base))

    return _register(client, name, "adapter", run_id, tags, save)


def name_champion(client: MlflowClient, name: str, number: str, run_id: str, key: str) -> bool:
    """Give the version the alias `champion` where its training won a sweep of the same experiment.

    Args:
        key: the training's key, as the sweep's run records that of its winner.
    """
    experiment = client.get_run(run_id).info.experiment_id
    won = client.search_runs([experiment], f"tags.`{WINNER_TAG}` = '{key}'", max_results=1)
    if won:
        client.set_registered_model_alias(name, CHAMPION, number)
    return bool(won)


def _save(folder: Path, model: Any, requirements: tuple[str, ...], **options: Any) -> None:
    import mlflow.transformers
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec(DataType.string)])
    params = ParamSchema(
        [
            ParamSpec("max_new_tokens", DataType.long, MAX_NEW_TOKENS),
            ParamSpec("do_sample", DataType.boolean, False),
            ParamSpec("temperature", DataType.double, 1.0),
        ]
    )
    mlflow.transformers.save_model(
        transformers_model=model,
        path=folder,
        task="text-generation",
        signature=ModelSignature(inputs=text, outputs=text, params=params),
        pip_requirements=[f"{package}=={version(package)}" for package in requirements],
        **options,
    )


def _register(
    client: MlflowClient,
    name: str,
    folder: str,
    run_id: str,
    tags: Mapping[str, str],
    save: Callable[[Path], None],
) -> str:
    from mlflow.exceptions import MlflowException

    same = [
        known.version
        for known in client.search_model_versions(f"name = '{name}'")
        if "dvc.lock" in tags and known.tags.get("dvc.lock") == tags["dvc.lock"]
    ]
    if same:
        return str(max(same, key=int))
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / folder
        save(model)
        client.log_artifacts(run_id, str(model), folder)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    made = client.create_model_version(name, source, run_id=run_id, tags=dict(tags))
    return str(made.version)
