"""The Dataset column and filter of MLflow's UI."""

import json

from loradag.runtime import Paths
from loradag.tracking.datasets import dataset_inputs
from loradag.tracking.flattening import flat_params
from loradag.tracking.publish import publish
from loradag.tracking.store import open_store
from tests.reporting.example import params, reports

DIGEST = "0123456789abcdef0123456789abcdef.dir"


def test_a_run_lists_its_splits_and_is_found_by_them(paths: Paths) -> None:
    flat = flat_params(params("experiment=smoke"))
    for _ in range(2):  # published again, nothing is there twice
        publish(paths, "a", flat, reports(), {}, {"data": DIGEST})
    client, experiment_id = open_store()
    for name, context in (("quotes (train)", "training"), ("quotes (eval)", "evaluation")):
        found = client.search_runs([experiment_id], f"dataset.name = '{name}'")
        assert found
        (given,) = [i for i in found[0].inputs.dataset_inputs if i.dataset.name == name]
        assert given.dataset.digest == DIGEST
        assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", context)]
        assert json.loads(given.dataset.profile)["num_rows"] > 0
        assert "input_ids" in given.dataset.schema


def test_the_source_is_the_commit_of_a_hub_data_set() -> None:
    flat = flat_params(params("experiment=smoke", "prepare=hub", "prepare.id=org/rows"))
    origins = {"org/rows@main": {"id": "org/rows", "commit": "c0ffee"}}
    found = reports() | {"source": {"origins": origins}}
    (given, *_) = dataset_inputs(flat, found, DIGEST)
    assert given.dataset.source_type == "hugging_face"
    assert given.dataset.name == "org/rows (train)"
    assert json.loads(given.dataset.source)["origins"] == origins


def test_rows_without_a_digest_are_no_dataset() -> None:
    assert dataset_inputs(flat_params(params("experiment=smoke")), reports(), None) == []
