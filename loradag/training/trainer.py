"""trl's SFTTrainer, set up from the `train` section."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import ProgressCallback
from trl import SFTConfig, SFTTrainer

from loradag.compat.accelerate import shard_on_cpu
from loradag.compat.bitsandbytes import store_as
from loradag.compat.torch import leave_frozen_parameters
from loradag.compat.trl import keep_trained_parameters, loss_in_one_pass
from loradag.config.launch import Launch
from loradag.config.train import Train
from loradag.evaluation.perplexity import score
from loradag.models.precision import verify_dtype
from loradag.training.batches import accepting_no_rows, spread
from loradag.training.callbacks import LossBar, Stopping
from loradag.training.guards import IGNORED, Guards, check_attention, check_optimizer
from loradag.training.packing import verify_packing
from loradag.training.sharding import sharding_options
from loradag.training.shares import share_of


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

    def compute_loss(self, *args: Any, **options: Any) -> Any:
        with loss_in_one_pass():
            return super().compute_loss(*args, **options)

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
        LoradagError: an optimizer or an attention implementation that the device does not have, or
            packing that is not exact.
    """
    check_optimizer(train.optimizer, model.device.type)
    check_attention(train.attention, model.device.type)
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
    text = model.config.get_text_config()
    returns_routing = getattr(text, "output_router_logits", None)
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
    if returns_routing is not None:
        # trl asks for it in each step of the training as well; a checkpoint would record it.
        text.output_router_logits = returns_routing
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
