"""trl's SFTTrainer, set up from the `train` section."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from loradag.compat.accelerate import shard_on_cpu
from loradag.compat.bitsandbytes import store_as
from loradag.compat.torch import leave_frozen_parameters
from loradag.compat.trl import keep_trained_parameters
from loradag.config.launch import Launch
from loradag.config.problems import LoradagError
from loradag.config.train import Train
from loradag.data.rows import Rows, read_rows
from loradag.evaluation.perplexity import check_scored, score
from loradag.models.precision import verify_dtype
from loradag.runtime import Paths
from loradag.training.batches import accepting_no_rows, spread
from loradag.training.guards import IGNORED, Guards, check_labels, check_optimizer
from loradag.training.packing import verify_packing
from loradag.training.sharding import sharding_options
from loradag.training.shares import share_of


class LossBar(ProgressCallback):
    """A bar with the losses and the time that is left, not a line a step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: dict[str, str] = {}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        found = {name: (logs or {}).get(name) for name in ("loss", "eval_loss")}
        self.losses |= {name: f"{loss:.3f}" for name, loss in found.items() if loss is not None}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.losses)


MASKS = {"completion": "completion_mask", "assistant": "assistant_mask"}


def labelled(rows: Rows, loss: str, file: Path) -> Dataset:
    """Rows as `input_ids` and `labels`, where tokens without loss are ignored.

    Written to `file` a row group at a time and mapped into memory from there, so that a million
    rows take no more of it than a thousand.
    """
    import pyarrow as pa

    columns = ["input_ids", *([MASKS[loss]] if loss in MASKS else [])]
    kind = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
    file.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, kind) as writer:
        for table in rows.tables(*columns):
            ids = table["input_ids"].combine_chunks()
            labels = ids.values.to_numpy()
            if loss in MASKS:
                mask = table[MASKS[loss]].combine_chunks().values.to_numpy()
                labels = np.where(mask, labels, np.int32(IGNORED))
            lists = pa.ListArray.from_arrays(ids.offsets, pa.array(labels, pa.int32()))
            writer.write_table(pa.table([ids, lists], kind))
    return Dataset.from_file(str(file))


def first_rows(data: Dataset, count: int | None) -> Dataset:
    """The first `count` rows; None: all of them."""
    return data if count is None else data.select(range(min(count, len(data))))


def label_batches(data: Dataset) -> Iterator[Any]:
    """The labels of many rows at a time, one after the other in one array."""
    for batch in data.with_format("arrow").iter(1024):
        yield batch["labels"].combine_chunks().flatten().to_numpy()


class Stopping(EarlyStoppingCallback):
    """Stops early, and leaves no checkpoint of the last step.

    Resumed from one, the trainer would train one step more.
    """

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Without the base class's advice to keep the best weights: that is `train.keep`."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if control.should_training_stop:
            control.should_save = False

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float], **options: Any
    ) -> None:
        super().on_evaluate(args, state, control, metrics, **options)
        if control.should_training_stop:
            control.should_save = False
            if state.best_metric is None or metrics["eval_loss"] < state.best_metric:
                state.best_model_checkpoint = None  # the model as it is now is the best


class Trainer(SFTTrainer):
    """SFTTrainer whose held-out loss is that of the stage `evaluate`.

    It is taken over tokens. The base class takes the mean over batches of different sizes. Every
    process computes all of it: where the model is divided, none could alone.
    """

    control: Any

    def get_train_dataloader(self) -> DataLoader[Any]:
        loader: DataLoader[Any] = super().get_train_dataloader()
        if self.args.world_size > 1:
            spread(loader)
        return loader

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        self.model.eval()  # each training step sets it back
        data = self.eval_dataset.with_format("numpy")
        rows, labels = data["input_ids"][:], data["labels"][:]
        longest = max(map(len, rows))
        held_out = score(
            self.model,
            rows,
            [row != IGNORED for row in labels],
            window=longest,
            stride=longest,
            batch_tokens=self.args.per_device_train_batch_size * longest,
            progress=False,
        )
        # Of one process, so that all decide the same about stopping and the best weights.
        metrics = {"eval_loss": broadcast_object_list([held_out.nll])[0]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def training_rows(
    paths: Paths, train: Train, eos_token_id: int, folder: Path, machine: int
) -> tuple[Dataset, Dataset]:
    """The rows to train on and those to evaluate on, written to `folder`.

    Args:
        machine: the number of this machine, whose files are its own.

    Raises:
        LoradagError: labels that train nothing, no held-out rows, or no token to score in them.
    """
    held_out_rows = read_rows(paths.prepared / "eval.parquet")
    if not held_out_rows:
        raise LoradagError(
            "there are no held-out rows to evaluate the training on. Raise prepare.eval_fraction."
        )
    rows = labelled(
        read_rows(paths.prepared / "train.parquet"),
        train.loss,
        folder / f"rows-{machine}.arrow",
    )
    rows = first_rows(rows, train.max_rows)
    check_labels(label_batches(rows), train.loss, eos_token_id)
    held_out = labelled(held_out_rows, train.loss, folder / f"held_out-{machine}.arrow")
    held_out = first_rows(held_out, train.eval_rows)
    check_scored(np.asarray(labels) != IGNORED for labels in held_out["labels"])
    return rows, held_out


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    held_out: Dataset,
    train: Train,
    launch: Launch,
    seed: int,
    dtype: torch.dtype,
    checkpoints: Path,
    callbacks: list[Any],
) -> Trainer:
    """A trainer that computes in `dtype` and checkpoints into `checkpoints`.

    Args:
        rows: to train on, as `labelled` makes them.
        held_out: to evaluate on.

    Raises:
        LoradagError: an optimizer that the device does not have, or packing that is not exact.
    """
    check_optimizer(train.optimizer, model.device.type)
    restore = keep_trained_parameters(model)
    stopping = train.early_stopping
    batch_size, accumulation = share_of(
        train.batch_size, train.gradient_accumulation, launch.processes
    )
    arguments = SFTConfig(
        output_dir=str(checkpoints),
        max_steps=train.max_steps or -1,
        num_train_epochs=train.epochs,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.scheduler,
        warmup_steps=train.warmup_steps,
        optim=train.optimizer,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        packing=train.packing,
        eval_packing=False,
        max_length=train.packing_tokens if train.packing else None,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=model.device.type == "cpu",
        seed=seed,
        logging_steps=train.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,  # else a NaN is logged as the average of the others
        include_num_input_tokens_seen="non_padding",
        eval_strategy="steps",
        eval_steps=train.eval_steps or sys.maxsize,  # the last step is evaluated in any case
        metric_for_best_model="eval_loss",
        load_best_model_at_end=train.keep == "best",
        restore_callback_states_from_checkpoint=True,  # the patience that is left
        save_steps=train.checkpoint_steps,
        save_total_limit=2,
        report_to="none",
        **sharding_options(launch, train),
    )
    if launch.strategy == "fsdp":
        shard_on_cpu()
        store_as(model, dtype)
    if launch.strategy == "ddp":
        leave_frozen_parameters(model)
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        callbacks=[
            Guards(model, limits_held_out=train.max_rows is None),
            *callbacks,
            Stopping(stopping.patience or sys.maxsize, stopping.threshold),
        ],
    )
    trainer.data_collator = accepting_no_rows(trainer.data_collator, tokenizer.pad_token_id)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar())
    restore()
    if train.packing and len(rows) > 1:
        first, second = (ids[: train.packing_tokens // 2] for ids in rows[:2]["input_ids"])
        verify_packing(model, trainer.data_collator, first, second)
    return trainer


def computed_dtype(trainer: SFTTrainer, dtype: torch.dtype) -> str:
    """The name of `dtype`, after a check that every product of the training is computed in it.

    Raises:
        LoradagError: a parameter computes in another one.
    """
    precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return verify_dtype(trainer.model, dtype, precisions.get(trainer.accelerator.mixed_precision))
