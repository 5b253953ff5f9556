"""Fetch the base model and pin it: once, whatever later stages vary.

Reads the source that `model` names; writes `artifacts/base`: tokenizer, configs, the pin of every
weight file, and the weights unless the source itself is a local copy.
"""

from loradag.config.model import Model
from loradag.runtime import Paths, replacing, run_stage
from loradag.runtime.report_keys import FetchReport


def fetch(paths: Paths, model: Model) -> FetchReport:
    from loradag.checkpoints.model_files import read_architecture
    from loradag.checkpoints.safetensors_reader import count_parameters
    from loradag.models.base import fetch_base
    from loradag.models.pinning import weights_folder

    with replacing(paths.base) as folder:
        pin = fetch_base(model, folder)
    return {
        "parameters": count_parameters(weights_folder(paths.base)),
        "bytes": sum(file["bytes"] for file in pin["weights"].values()),
        "revision": pin["revision"],
        "architecture": read_architecture(paths.base),
    }


if __name__ == "__main__":
    run_stage(fetch)
