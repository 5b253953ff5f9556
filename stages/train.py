"""Train the adapter on the frozen, quantized base; or every weight, where there is no adapter.

Reads `data/prepared` and `artifacts/quantized` (and the base that it stands for); writes
`artifacts/adapter` and the loss curve. Stopped at any moment, it goes on from its last checkpoint
to the same bytes.
"""

import shutil
import time
from dataclasses import asdict

from loradag.config.adapter import Adapter
from loradag.config.train import Train
from loradag.models.device import compute_dtype, device
from loradag.runtime import Paths, peak_memory_bytes, replacing, run_stage
from loradag.runtime.report_keys import TrainReport
from loradag.training.naming import method_name


def train(paths: Paths, adapter: Adapter, train: Train, seed: int) -> TrainReport:
    from loradag.data.rows import read_rows
    from loradag.data.token_contract import read_contract, verify_tokenizer
    from loradag.models.tokenizer import load_tokenizer
    from loradag.tracking.live import live_callback
    from loradag.training.curve import final_loss, write_curve
    from loradag.training.method import (
        count_parameters,
        load_trainable,
        save_trained,
    )
    from loradag.training.resume import inputs_key, last_checkpoint
    from loradag.training.trainer import computed_dtype, make_trainer

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    options = [asdict(adapter), asdict(train), seed]
    files = [*paths.prepared.iterdir(), *paths.quantized.iterdir(), paths.base / "pin.json"]
    key = inputs_key(options, files)
    checkpoints = paths.state / "checkpoints" / key
    dtype = compute_dtype(train.dtype)

    model = load_trainable(paths, adapter, train, seed, dtype, checkpoints)
    trainer = make_trainer(
        model, tokenizer, read_rows(paths.prepared / "train.parquet"), train, seed, dtype,
        checkpoints, [live_callback(paths, key)],
    )  # fmt: skip
    checkpoint = last_checkpoint(checkpoints)
    resumed = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started

    trained, total = count_parameters(trainer.model)
    with replacing(paths.adapter) as folder:
        save_trained(trainer.model, paths, adapter, train, folder, checkpoints)
    write_curve(paths.loss, trainer.state.log_history)
    shutil.rmtree(checkpoints)
    state = trainer.state
    return {
        "method": method_name(adapter, train),
        "trainable_parameters": trained,
        "total_parameters": total,
        "steps": state.global_step,
        "tokens": int(state.num_input_tokens_seen),
        "final_loss": final_loss(state.log_history),
        "tokens_per_second": round(
            state.num_input_tokens_seen * (1 - resumed / state.global_step) / seconds, 3
        ),
        "peak_memory_bytes": peak_memory_bytes(),
        "resumed_from_step": resumed,
        "dtype": computed_dtype(trainer, dtype),
        "device": device(),
        "checkpoint_key": key,
    }


if __name__ == "__main__":
    run_stage(train)
