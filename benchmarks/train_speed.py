"""The time of a training step on a quantised base, as a ratio to quantize=none.

    dvc repro prepare
    python -m benchmarks.train_speed

Trains the prepared rows with each scheme and dtype by the code of the stage `train`, and with trl's
own loop (`trl`: what a script of `from_pretrained`, `SFTTrainer` and a `LoraConfig` does, all else
at its defaults). The ways take turns, so that what else the machine does meets all of them alike.
A step's time is the CPU time of one thread, of which other processes take little; the median of the
steps counts.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loradag.config.composition import compose, plain
from loradag.config.sections import Config, Runtime
from loradag.config.validation import validate
from loradag.runtime import Paths
from loradag.runtime.environment import configure

SCHEMES = ("none", "nf4", "int8")
DTYPES = ("float32", "bfloat16")
ROUNDS = 3
STEPS = 3  # a round; the first of each is not counted
ROWS = 64


def config_of(scheme: str, dtype: str) -> Config:
    return validate(
        plain(compose([f"quantize={scheme}", f"train.dtype={dtype}", f"train.max_steps={STEPS}"]))
    )


def ours(paths: Paths, config: Config, rows: list[Any], scratch: Path) -> Any:
    """The trainer of the stage `train`."""
    from loradag.models.device import compute_dtype
    from loradag.models.tokenizer import load_tokenizer
    from loradag.training.method import load_trainable
    from loradag.training.trainer import make_trainer

    dtype = compute_dtype(config.train.dtype)
    train = replace(config.train, checkpoint_steps=10 * STEPS)
    model = load_trainable(paths, config.adapter, train, config.seed, dtype, scratch).model
    tokenizer = load_tokenizer(paths.base)
    return make_trainer(model, tokenizer, rows, rows[:1], train, config.seed, dtype, scratch, [])


def trl(paths: Paths, config: Config, rows: list[Any], scratch: Path) -> Any:
    """The trainer of a plain script."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    dtype = getattr(torch, config.train.dtype)
    bits: dict[str, Any] = {
        "none": {},
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype,
            "bnb_4bit_use_double_quant": True,
        },
        "int8": {"load_in_8bit": True},
    }[config.quantize.scheme]
    quantized = {"quantization_config": BitsAndBytesConfig(**bits)} if bits else {}
    model = AutoModelForCausalLM.from_pretrained(
        paths.base, dtype=dtype, device_map={"": "cpu"}, **quantized
    )
    return SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch),
            max_steps=STEPS,
            per_device_train_batch_size=config.train.batch_size,
            bf16=dtype == torch.bfloat16,
            use_cpu=True,
            seed=config.seed,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"input_ids": [row.input_ids for row in rows]}),
        peft_config=LoraConfig(
            r=config.adapter.r,
            lora_alpha=config.adapter.alpha,
            lora_dropout=config.adapter.dropout,
            target_modules="all-linear",
        ),
    )


WAYS = {"loradag": ours, "trl": trl}


def stopwatch(trainer: Any) -> list[float]:
    """A list that the CPU seconds of each step of `trainer` go into."""
    from transformers import TrainerCallback

    seconds: list[float] = []

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.process_time()

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step > 1:
                seconds.append(time.process_time() - self.started)

    trainer.add_callback(Stopwatch())
    return seconds


def trainers(dtype: str, scratch: Path) -> Iterator[tuple[tuple[str, str], Any]]:
    from loradag.data.rows import read_rows
    from stages.quantize import quantize

    here = Paths(Path())
    rows = read_rows(here.prepared / "train.parquet")[:ROWS]
    for scheme in SCHEMES:
        config, paths = config_of(scheme, dtype), Paths(scratch / scheme)
        if not paths.quantized.exists():
            paths.base.parent.mkdir(parents=True)
            paths.base.symlink_to(here.base.absolute())
            quantize(paths, config.quantize)
        for way, make in WAYS.items():
            yield (way, scheme), make(paths, config, rows, scratch / "state")


def main() -> None:
    configure(Runtime(threads=1, device="cpu"))
    with tempfile.TemporaryDirectory() as name:
        for dtype in DTYPES:
            made = dict(trainers(dtype, Path(name)))
            seconds = {key: stopwatch(trainer) for key, trainer in made.items()}
            for _ in range(ROUNDS):
                for trainer in made.values():
                    trainer.train()
            del made
            medians = {key: statistics.median(found) for key, found in seconds.items()}
            for (way, scheme), median in medians.items():
                ratio = median / medians["loradag", "none"]
                print(f"{dtype:10}{way:10}{scheme:10}{median:6.2f} s{ratio:8.2f} of none")


if __name__ == "__main__":
    main()
