"""trl's SFTTrainer, set up from the `train` section."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import ProgressCallback
from trl import SFTConfig, SFTTrainer

from loradag.compat.trl import trained_parameters_unchanged
from loradag.config.train import Train
from loradag.data.rows import Rows
from loradag.models.precision import verify_dtype
from loradag.training.guards import IGNORED, FiniteLoss, check_labels


class LossBar(ProgressCallback):
    """A bar with the loss and the time that is left, not a line a step."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


MASKS = {"completion": "completion_mask", "assistant": "assistant_mask"}


def labelled(rows: Rows, loss: str, eos_token_id: int, file: Path) -> Dataset:
    """Rows as `input_ids` and `labels`, where tokens without loss are ignored.

    Written to `file` a row group at a time and mapped into memory from there, so that a million
    rows take no more of it than a thousand.
    """
    import numpy as np
    import pyarrow as pa

    columns = ["input_ids", *([MASKS[loss]] if loss in MASKS else [])]
    kind = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})

    def label() -> Iterator[Any]:
        for table in rows.tables(*columns):
            ids = table["input_ids"].combine_chunks()
            labels = ids.values.to_numpy()
            if loss in MASKS:
                mask = table[MASKS[loss]].combine_chunks().values.to_numpy()
                labels = np.where(mask, labels, np.int32(IGNORED))
            lists = pa.ListArray.from_arrays(ids.offsets, pa.array(labels, pa.int32()))
            writer.write_table(pa.table([ids, lists], kind))
            yield labels

    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, kind) as writer:
        check_labels(label(), loss, eos_token_id)
    return Dataset.from_file(str(file))


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    train: Train,
    seed: int,
    dtype: torch.dtype,
    checkpoints: Path,
    callbacks: list[Any],
) -> SFTTrainer:
    """A trainer that computes in `dtype` and checkpoints into `checkpoints`."""
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        max_steps=train.max_steps or -1,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=train.batch_size,
        gradient_accumulation_steps=train.gradient_accumulation,
        gradient_checkpointing=train.gradient_checkpointing,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        optim=train.optimizer,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        packing=train.packing,
        max_length=train.packing_tokens if train.packing else None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=model.device.type == "cpu",
        seed=seed,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # else a NaN is logged as the average of the others
        include_num_input_tokens_seen="non_padding",
        save_steps=train.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
    )
    with trained_parameters_unchanged(model):
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=labelled(
                rows, train.loss, tokenizer.eos_token_id, checkpoints / "rows.arrow"
            ),
            processing_class=tokenizer,
            callbacks=[FiniteLoss(), *callbacks],
        )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar())
    return trainer


def computed_dtype(trainer: SFTTrainer, dtype: torch.dtype) -> str:
    """The name of `dtype`, after a check that every product of the training is computed in it.

    Raises:
        LoradagError: a parameter computes in another one.
    """
    precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return verify_dtype(trainer.model, dtype, precisions.get(trainer.accelerator.mixed_precision))
