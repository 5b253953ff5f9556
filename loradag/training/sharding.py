"""Dividing a model among processes: FSDP2 and DeepSpeed's ZeRO, as transformers takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from loradag.config.launch import Launch
from loradag.config.train import Train

T = TypeVar("T")


def sharding_options(launch: Launch, train: Train) -> dict[str, Any]:
    """Those options of transformers' `TrainingArguments` that depend on the strategy.

    FSDP recomputes activations by itself: transformers' way would gather the weights once more.
    """
    is_full = launch.sharding == "full_shard"
    if launch.strategy == "fsdp":
        config = {
            "version": 2,
            "reshard_after_forward": is_full,
            "cpu_offload": launch.offload,
            "activation_checkpointing": train.gradient_checkpointing,
            "state_dict_type": "FULL_STATE_DICT",
        }
        return {"fsdp": True, "fsdp_config": config, "gradient_checkpointing": False}
    options: dict[str, Any] = {"gradient_checkpointing": train.gradient_checkpointing}
    if launch.strategy == "deepspeed":
        options["deepspeed"] = deepspeed_config(launch)
    return options


def deepspeed_config(launch: Launch) -> dict[str, Any]:
    """DeepSpeed's configuration; "auto" is what the trainer's own arguments are."""
    is_full = launch.sharding == "full_shard"
    zero: dict[str, Any] = {"stage": 3 if is_full else 2}
    if is_full:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    if launch.offload:
        zero |= {
            f"offload_{part}": {"device": "cpu"} for part in ("optimizer", "param")[: 1 + is_full]
        }
    return {
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # the optimizer is train.optimizer
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
    }


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` returns in the first process, in every process.

    The processes are connected since the trainer's arguments were made.
    """
    result = [compute() if PartialState().is_main_process else None]
    first: T = broadcast_object_list(result)[0]
    return first


def launched(trainer: Any) -> str:
    """The strategy by which the model was trained, by what wraps it."""
    if trainer.is_deepspeed_enabled:
        return "deepspeed"
    if isinstance(trainer.model, FSDPModule):
        return "fsdp"
    return "ddp" if isinstance(trainer.model_wrapped, DistributedDataParallel) else "single"


def gather_trained(trainer: Any) -> Mapping[str, Any] | None:
    """The full trained parameters by name, on the CPU, where the processes divided the model.

    Every process takes part; the first one has them. None: the model is not divided.
    """
    strategy = launched(trainer)
    if strategy == "deepspeed":
        return dict(trainer.accelerator.get_state_dict(trainer.model_wrapped))
    if strategy == "fsdp":
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        return dict(get_model_state_dict(trainer.model, options=options))
    return None
