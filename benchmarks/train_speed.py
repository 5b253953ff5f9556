"""The speed of training on a quantised base, as a ratio to quantize=none and to others' trainers.

    dvc repro prepare
    python -m benchmarks.train_speed [--llamafactory PYTHON]

Trains the prepared rows with each scheme and dtype by the code of the stage `train`, in packed
batches as by default; with trl's own loop in batches of four rows (a script of `from_pretrained`,
`SFTTrainer` and a `LoraConfig`, all else at its defaults); and with LLaMA-Factory in batches of
four rows, where PYTHON is the interpreter of an environment that has it. The ways take turns, so
that what else the machine does meets all of them alike. Counted are real tokens, without padding,
per second of CPU time of one thread, of which other processes take little; the median of the steps.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
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
ROUNDS = 2
STEPS = 4  # a round; the first of each is not counted
ROWS = 256
BATCH = 4  # rows of a batch that is not packed


def config_of(scheme: str, dtype: str) -> Config:
    return validate(
        plain(compose([f"quantize={scheme}", f"train.dtype={dtype}", f"train.max_steps={STEPS}"]))
    )


def ours(paths: Paths, config: Config, rows: Any, scratch: Path) -> Any:
    """The trainer of the stage `train`."""
    from loradag.models.device import compute_dtype
    from loradag.models.tokenizer import load_tokenizer
    from loradag.training.labels import first_rows, labelled
    from loradag.training.method import load_trainable
    from loradag.training.trainer import make_trainer

    dtype = compute_dtype(config.train.dtype)
    train = replace(config.train, checkpoint_steps=10 * STEPS)
    model = load_trainable(paths, config.adapter, train, config.seed, dtype, scratch).model
    tokenizer = load_tokenizer(paths.base)
    data = first_rows(labelled(rows, train.loss, scratch / "rows.arrow"), ROWS)
    return make_trainer(
        model, tokenizer, data, first_rows(data, 1), train, config.launch, config.seed, dtype,
        scratch, [],
    )  # fmt: skip


def trl(paths: Paths, config: Config, rows: Any, scratch: Path) -> Any:
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
            per_device_train_batch_size=BATCH,
            bf16=dtype == torch.bfloat16,
            use_cpu=True,
            seed=config.seed,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        ),
        train_dataset=Dataset.from_dict({"input_ids": [row.input_ids for row in rows[:ROWS]]}),
        peft_config=LoraConfig(
            r=config.adapter.r,
            lora_alpha=config.adapter.alpha,
            lora_dropout=config.adapter.dropout,
            target_modules="all-linear",
        ),
    )


def stored_in(dtype: str, base: Path, folder: Path) -> Path:
    """A folder with the weights of `base` in `dtype`: LLaMA-Factory computes in what is stored."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not folder.exists():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def llamafactory(python: str, paths: Paths, config: Config, scratch: Path) -> list[Any]:
    """CPU seconds and tokens of the steps of LLaMA-Factory on the rows in `scratch`."""
    bits = {"none": {}, "nf4": {"quantization_bit": 4}}
    dtype = config.train.dtype
    base = stored_in(dtype, paths.base, scratch / f"base-{dtype}")
    options = {
        "model_name_or_path": str(base), "stage": "sft", "do_train": True,
        "finetuning_type": "lora", "lora_rank": config.adapter.r, "lora_target": "all",
        "lora_alpha": int(config.adapter.alpha), "lora_dropout": config.adapter.dropout,
        "dataset": "rows", "dataset_dir": str(scratch), "template": "empty",
        "cutoff_len": config.prepare.max_tokens, "per_device_train_batch_size": BATCH,
        "gradient_accumulation_steps": 1, "max_steps": STEPS, "learning_rate": 1e-3,
        "bf16": dtype == "bfloat16", "use_cpu": True,
        "include_num_input_tokens_seen": "non_padding",
        "output_dir": str(scratch / "output"), "overwrite_output_dir": True,
        "save_strategy": "no", "report_to": "none",
        "disable_gradient_checkpointing": True, "disable_tqdm": True,
        **bits[config.quantize.scheme],
    }  # fmt: skip
    script = Path(__file__).parent / "peers/llamafactory_steps.py"
    done = subprocess.run(
        [python, str(script), json.dumps(options)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        print(f"{dtype} llamafactory {config.quantize.scheme} fails: {reason}")
        return []
    return list(json.loads(done.stdout.splitlines()[-1]))


def write_texts(tokenizer: Any, rows: list[Any], folder: Path) -> None:
    """The rows as LLaMA-Factory reads them."""
    texts = [tokenizer.decode(row.input_ids, skip_special_tokens=True) for row in rows]
    parts = [text.rpartition("\nAuthor:") for text in texts]
    turns = [{"instruction": before, "output": by + after} for before, by, after in parts]
    (folder / "rows.json").write_text(json.dumps(turns))
    columns = {"prompt": "instruction", "response": "output"}
    info = {"rows": {"file_name": "rows.json", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))


WAYS = {"loradag": ours, "trl": trl}


def stopwatch(trainer: Any) -> list[Any]:
    """A list that the CPU seconds and tokens of each step of `trainer` go into."""
    from transformers import TrainerCallback

    steps: list[Any] = []
    trainer.args.include_num_input_tokens_seen = "non_padding"

    class Stopwatch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            self.started, self.seen = time.process_time(), state.num_input_tokens_seen

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step > 1:
                seconds = time.process_time() - self.started
                steps.append([seconds, int(state.num_input_tokens_seen) - int(self.seen)])

    trainer.add_callback(Stopwatch())
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llamafactory", help="the interpreter of an environment that has it")
    python = parser.parse_args().llamafactory
    configure(Runtime(threads=1, device="cpu"))
    from loradag.data.rows import read_rows
    from loradag.models.tokenizer import load_tokenizer
    from stages.quantize import quantize

    here = Paths(Path())
    rows = read_rows(here.prepared / "train.parquet")
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_texts(load_tokenizer(here.base), rows[:ROWS], scratch)
        for dtype in DTYPES:
            configs = {scheme: config_of(scheme, dtype) for scheme in SCHEMES}
            places = {scheme: Paths(scratch / scheme) for scheme in SCHEMES}
            trainers = {}
            for scheme, paths in places.items():
                if not paths.quantized.exists():
                    paths.base.parent.mkdir(parents=True)
                    paths.base.symlink_to(here.base.absolute())
                    quantize(paths, configs[scheme].quantize)
                for way, make in WAYS.items():
                    if scheme == "int8" and way != "loradag":
                        continue  # a minute a step
                    trainer = make(paths, configs[scheme], rows, scratch / "state")
                    trainers[way, scheme] = trainer
            steps: dict[tuple[str, str], list[Any]]
            steps = {key: stopwatch(trainer) for key, trainer in trainers.items()}
            for _ in range(ROUNDS):
                for (way, scheme), trainer in trainers.items():
                    trainer.train()
                    if python and way == "trl":
                        found = llamafactory(python, places[scheme], configs[scheme], scratch)
                        steps.setdefault(("llamafactory", scheme), []).extend(found)
            del trainers
            speeds = {
                key: statistics.median(tokens / seconds for seconds, tokens in found)
                for key, found in steps.items()
                if found
            }
            for (way, scheme), speed in sorted(speeds.items()):
                none, ours_ = speeds[way, "none"], speeds["loradag", scheme]
                print(
                    f"{dtype:10}{way:14}{scheme:6}{speed:8.1f} tokens a second"
                    f"{speed / none:7.2f} of none{ours_ / speed:7.2f} times as fast here",
                    flush=True,
                )


if __name__ == "__main__":
    main()
