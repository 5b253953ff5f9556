"""trl's SFTTrainer, set up from the `train` section."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import ProgressCallback
from trl import SFTConfig, SFTTrainer

from loradag.config.train import Train
from loradag.data.rows import Row
from loradag.models.precision import verify_dtype
from loradag.training.guards import IGNORED, FiniteLoss, check_labels


class LossBar(ProgressCallback):
    """A bar with the loss and the time that is left, not a line a step."""

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any
    ) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")


def labelled(rows: list[Row], loss: str, eos_token_id: int) -> Dataset:
    """Rows as `input_ids` and `labels`; with completion-only loss the prompt is ignored."""
    labels = [
        [
            id if in_completion or loss == "full" else IGNORED
            for id, in_completion in zip(row.input_ids, row.completion_mask, strict=True)
        ]
        for row in rows
    ]
    check_labels(labels, eos_token_id)
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": labels})


def make_trainer(
    model: Any,
    tokenizer: Any,
    rows: list[Row],
    train: Train,
    seed: int,
    dtype: torch.dtype,
    checkpoints: Path,
    callbacks: list[Any],
) -> SFTTrainer:
    """A trainer that computes in `dtype` and checkpoints into `checkpoints`."""
    started = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
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
        ),
        train_dataset=labelled(rows, train.loss, tokenizer.eos_token_id),
        processing_class=tokenizer,
        callbacks=[FiniteLoss(), *callbacks],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar())
    # trl rounds what trains on a quantized base to bfloat16: slow on a CPU without it, and lossy
    # for a start that was computed.
    for name, parameter in model.named_parameters():
        if name in started:
            parameter.data = started[name]
    return trainer


def computed_dtype(trainer: SFTTrainer, dtype: torch.dtype) -> str:
    """The name of `dtype`, after a check that every product of the training is computed in it.

    Raises:
        LoradagError: a parameter computes in another one.
    """
    precisions = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return verify_dtype(trainer.model, dtype, precisions.get(trainer.accelerator.mixed_precision))
