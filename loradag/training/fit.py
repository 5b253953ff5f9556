"""The training itself, as each of its processes runs it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.config.adapter import Adapter
from loradag.config.launch import Launch
from loradag.config.train import Train
from loradag.runtime import Paths, peak_memory_bytes, replacing
from loradag.runtime.environment import DEVICE
from loradag.runtime.report_keys import TrainReport
from loradag.training.naming import method_name

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


def fit(
    paths: Paths,
    adapter: Adapter,
    train: Train,
    launch: Launch,
    seed: int,
    dtype: torch.dtype,
    key: str,
    checkpoints: Path,
    rows: Dataset,
    held_out: Dataset,
) -> TrainReport:
    """Train in one of the processes of `launch`; the first of them writes."""
    from accelerate.utils import patch_environment

    from loradag.compat.transformers import attention_implementation
    from loradag.models.tokenizer import load_tokenizer
    from loradag.tracking.live import live_callback
    from loradag.training.curve import curves_callback, final_loss, loss_at, write_curves
    from loradag.training.method import load_trainable
    from loradag.training.resume import last_checkpoint, state_of
    from loradag.training.sharding import from_first, gather_trained, launched
    from loradag.training.trainer import computed_dtype, make_trainer

    trainable = load_trainable(paths, adapter, train, seed, dtype, checkpoints)
    trained, total = trainable.count_parameters()
    trainer = make_trainer(
        trainable.model, load_tokenizer(paths.base), rows, held_out, train, launch, seed, dtype,
        checkpoints, [live_callback(paths, key), curves_callback(paths)],
    )  # fmt: skip
    checkpoint = from_first(lambda: last_checkpoint(checkpoints, launch.processes))
    resumed = state_of(checkpoint)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = time.perf_counter() - started
    computed_in = computed_dtype(trainer, dtype)
    attention = attention_implementation(trainer.model)
    gathered = gather_trained(trainer)
    if trainer.is_world_process_zero():
        if gathered is not None:  # a model to write them from, for the one that trained is divided
            with patch_environment(**{DEVICE: "cpu"}):
                trainable = load_trainable(paths, adapter, train, seed, dtype, checkpoints)
            trainable.set_trained(gathered)
        with replacing(paths.adapter) as folder:
            trainable.save(folder)
        write_curves(paths, trainer.state.log_history)

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
            (state.num_input_tokens_seen - resumed.num_input_tokens_seen) / seconds, 3
        ),
        "peak_memory_bytes": peak_memory_bytes(),
        "resumed_from_step": resumed.global_step,
        "dtype": computed_in,
        "attention": attention,
        "device": trainer.args.device.type,
        "launch": launched(trainer),
        "processes": trainer.args.world_size,
        "checkpoint_key": key,
    }
