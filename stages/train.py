"""Train the adapter on the frozen, quantized base; or every weight, where there is no adapter.

Reads `data/prepared`, `artifacts/base` and `artifacts/quantized`; writes `artifacts/adapter`,
`plots/loss.csv` and `plots/eval_loss.csv`. Stopped at any moment, it continues from its last
checkpoint and ends in the same bytes.
"""

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
    from loradag.training.curve import curves_callback, final_loss, loss_at, write_curves
    from loradag.training.method import load_trainable
    from loradag.training.resume import checkpoint_folder, last_checkpoint, step_of, training_key
    from loradag.training.trainer import computed_dtype, make_trainer

    tokenizer = load_tokenizer(paths.base)
    verify_tokenizer(tokenizer, read_contract(paths.contract))
    dtype = compute_dtype(train.dtype)
    options = [asdict(adapter), asdict(train), seed, str(dtype), device()]
    key = training_key(paths, options, adapter.start)
    with checkpoint_folder(paths, key) as checkpoints:
        trainable = load_trainable(paths, adapter, train, seed, dtype, checkpoints)
        trainer = make_trainer(
            trainable.model, tokenizer, read_rows(paths.prepared / "train.parquet"),
            read_rows(paths.prepared / "eval.parquet"), train, seed, dtype, checkpoints,
            [live_callback(paths, key), curves_callback(paths)],
        )  # fmt: skip
        checkpoint = last_checkpoint(checkpoints)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        seconds = time.perf_counter() - started
        with replacing(paths.adapter) as folder:
            trainable.save(folder)
        write_curves(paths, trainer.state.log_history)

    resumed = step_of(checkpoint) if checkpoint else 0
    trained, total = trainable.count_parameters()
    state = trainer.state
    kept = state.best_global_step if train.keep == "best" else state.global_step
    return {
        "method": method_name(adapter, train),
        "trainable_parameters": trained,
        "total_parameters": total,
        "steps": state.global_step,
        "tokens": int(state.num_input_tokens_seen),
        "final_loss": final_loss(state.log_history),
        "eval_loss": loss_at(state.log_history, kept),
        "kept_step": kept,
        "stopped_early": state.global_step < state.max_steps,
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
    from loradag.export.feasibility import check_before_training

    run_stage(train, check=check_before_training)
