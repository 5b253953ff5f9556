"""The pipeline on a model that its memory has no room for.

    python -m benchmarks.small_memory [--limit 3.0] [--quantize none] [--scratch FOLDER]

Builds a random Llama of 1.03 billion parameters in shards of 0.5 GB (2.07 GB in bfloat16, 4.14 GB
in float32, as merge and export compare it), then runs every stage in a control group whose memory
is limited to so many GB, and `train` in one without limit. `export` writes safetensors and GGUF in
f16 and q8_0, and verifies each in its runtime. Prints of each stage the seconds, and the peak of
memory that is not a page of a file. Needs 25 GB of disk, and the right to make a control group
(root, cgroup version 1 or 2).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import quantize_memory
from loradag.models.random_tokenizer import train_tokenizer
from tests.repository import Repository

STAGES = (
    "fetch", "source", "prepare", "quantize", "train", "baseline", "evaluate", "merge", "export",
)  # fmt: skip
SHAPE = {"vocab_size": 1024, "num_hidden_layers": 17, "max_position_embeddings": 256}
OVERRIDES = (
    "model=local", "model.context=256", "prepare.max_rows=200",
    "train.max_steps=2", "train.eval_steps=2", "train.checkpoint_steps=2", "train.eval_rows=4",
    "evaluate.samples=1", "evaluate.max_new_tokens=2", "evaluate.general.source=none",
    "merge.rows=2", "merge.max_new_tokens=2", "export.formats=[safetensors,gguf]",
    "export.type=[f16,q8_0]", "export.rows=2", "export.max_new_tokens=2",
)  # fmt: skip
UNLIMITED = ("train",)


def build(folder: Path) -> int:
    """The model with a tokenizer of its own; its bytes."""
    quantize_memory.SHAPE |= SHAPE
    tokenizer = train_tokenizer(SHAPE["vocab_size"], "<|pad|>")
    tokenizer.model_max_length = SHAPE["max_position_embeddings"]
    tokenizer.save_pretrained(folder)
    return quantize_memory.build(folder)


class Group:
    """A control group, of version 2 or 1."""

    def __init__(self, limit: int) -> None:
        root = Path("/sys/fs/cgroup")
        old = (root / "memory").is_dir()
        self.path = (root / "memory" if old else root) / f"loradag-{os.getpid()}-{limit}"
        self.path.mkdir()
        name = "memory.limit_in_bytes" if old else "memory.max"
        (self.path / name).write_text(str(limit))
        self.field = "total_rss" if old else "anon"

    def enter(self) -> None:
        """Put this process into it."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def anonymous(self) -> int:
        """Bytes that are no page of a file."""
        lines = (self.path / "memory.stat").read_text().splitlines()
        return next(int(v) for k, v in (line.split() for line in lines) if k == self.field)

    @contextmanager
    def watching(self) -> Iterator[list[int]]:
        """The peak of `anonymous`, complete when the context ends."""
        peak, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.02):
                peak[0] = max(peak[0], self.anonymous())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=float, default=3.0, help="GB")
    parser.add_argument("--quantize", default="none")
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(dir=options.scratch))
    group = Group(int(options.limit * 1e9))
    everywhere = Group(2**40)
    try:
        base = scratch / "base"
        base.mkdir()
        total = build(base)
        print(f"base: {total / 2e9:.2f}e9 parameters, {total / 1e9:.2f} GB; ", end="")
        print(f"limit {options.limit:.1f} GB; quantize={options.quantize}")
        repository = Repository(scratch / "project")
        repository.compose(*OVERRIDES, f"model.path={base}", f"quantize={options.quantize}")
        for stage in STAGES:
            inside = everywhere if stage in UNLIMITED else group
            started = time.perf_counter()
            with inside.watching() as peak:
                done = subprocess.run(
                    [sys.executable, "-m", "dvc", "repro", "--single-item", stage],
                    cwd=repository.root, env=repository.environment, preexec_fn=inside.enter,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
            seconds = time.perf_counter() - started
            note = "" if inside is group else " without limit"
            print(f"{stage:10}{seconds:6.0f} s{peak[0] / 1e9:7.2f} GB{note}", flush=True)
            if done.returncode:
                sys.exit(done.stdout[-4000:])
    finally:
        for made in (group, everywhere):
            made.path.rmdir()
        shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
