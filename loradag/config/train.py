"""The section `train`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from loradag.config.dtypes import DTYPES
from loradag.config.rules import (
    above,
    at_least,
    between,
    one_of,
)


@dataclass
class EarlyStopping:
    """When training ends because the held-out loss no longer improves."""

    patience: int | None = at_least(1)  # evaluations without improvement; null: never stop early
    threshold: float = at_least(0)  # nats a token; a smaller fall of the loss is no improvement


@dataclass
class Train:
    """The training method, its data and its optimizer."""

    method: str = one_of("sft", "qat", "bitnet")
    loss: str = one_of("full", "completion", "assistant")  # full: on every token
    max_rows: int | None = at_least(1)  # train on the first rows only; null: all
    packing: bool = MISSING  # several short rows in one, without attention between them
    packing_tokens: int = at_least(8)  # tokens per packed row
    learning_rate: float = above(0)
    scheduler: str = one_of(
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    )
    warmup_steps: int = at_least(0)  # optimizer steps
    max_steps: int | None = at_least(1)  # optimizer steps; null: `epochs` decides
    epochs: float = above(0)
    batch_size: int = at_least(1)  # rows per forward pass, of a single process
    gradient_accumulation: int = at_least(
        1
    )  # forward passes per optimizer step, of a single process
    gradient_checkpointing: bool = MISSING
    optimizer: str = one_of(
        "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd"
    )
    weight_decay: float = at_least(0)
    max_grad_norm: float = at_least(0)
    dtype: str = one_of(*DTYPES)  # auto: what the device computes natively
    attention: str = one_of("auto", "eager", "sdpa", "flash_attention_2", "flex_attention")
    logging_steps: int = at_least(1)  # optimizer steps
    eval_steps: int | None = at_least(1)  # optimizer steps; null: only the last one is evaluated
    eval_rows: int = at_least(1)  # at most, per evaluation
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    keep: str = one_of("last", "best")  # best: the weights with the lowest held-out loss
    checkpoint_steps: int = at_least(1)  # optimizer steps
    weight_bits: int | None = between(2, 8)  # qat: of fake-quantized weights
    group_size: int | None = at_least(2)  # qat
    activation_bits: int | None = between(8, 8)  # qat, bitnet: of fake-quantized activations
