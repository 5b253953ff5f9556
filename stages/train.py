"""Train the adapter on the frozen, quantized base; without an adapter, every weight.

Reads `data/prepared`, `artifacts/base` and `artifacts/quantized`; writes `artifacts/adapter`,
`plots/loss.csv` and `plots/eval_loss.csv`. A training that was stopped continues from its last
checkpoint, and its result is the same, byte for byte.
"""

from dataclasses import asdict

from loradag.config.adapter import Adapter
from loradag.config.launch import Launch
from loradag.config.train import Train
from loradag.models.device import compute_dtype, device
from loradag.runtime import Paths, run_stage
from loradag.runtime.report_keys import TrainReport


def train(paths: Paths, adapter: Adapter, train: Train, launch: Launch, seed: int) -> TrainReport:
    from loradag.data.token_contract import read_contract, verify_tokenizer
    from loradag.models.tokenizer import load_tokenizer
    from loradag.training.fit import fit
    from loradag.training.labels import training_rows
    from loradag.training.processes import machine_rank, run_ranks
    from loradag.training.resume import checkpoint_folder, training_key

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    dtype = compute_dtype(train.dtype)
    options = [asdict(adapter), asdict(train), asdict(launch), seed, str(dtype), device()]
    key = training_key(paths, options, adapter.start)
    machine = machine_rank(launch)
    with checkpoint_folder(paths, key, machine) as checkpoints:
        rows = training_rows(paths, train, tokenizer.eos_token_id, checkpoints, machine)
        given = (paths, adapter, train, launch, seed, dtype, key, checkpoints, *rows)
        reports = run_ranks(launch, fit, *given)
    report = reports[0]
    report["peak_memory_bytes"] = max(each["peak_memory_bytes"] for each in reports.values())
    return report


if __name__ == "__main__":
    from loradag.export.feasibility import check_before_training

    run_stage(train, check=check_before_training)
