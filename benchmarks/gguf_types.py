"""GGUF file types of the merged model, side by side: size, perplexity, speed.

    dvc repro merge
    python -m benchmarks.gguf_types

Each type is written once and loaded in llama.cpp: perplexity on held-out rows, and for the mixtures
also that of the same type with all columns alike. Speed is decoded tokens a second over those of
the f16 file, measured in turns. Prints the table of `docs/merge_and_export.md`.
"""

import tempfile
from pathlib import Path
from typing import Any

from loradag.config.export import MIXED_TYPES
from loradag.config.sections import Runtime
from loradag.config.validation import load_config
from loradag.runtime import Paths
from loradag.runtime.environment import configure, threads

TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "iq4_xs", "q4_0", "q3_k_m")
ROWS = 56  # held out, about 2,000 tokens
CALIBRATION_ROWS = 32
REPEATS = 3  # of the timed texts; the fastest counts
NEW_TOKENS = 32  # of each


def main() -> None:
    import numpy as np
    import torch

    from loradag.data.calibration_rows import read_calibration_rows
    from loradag.data.rows import read_rows
    from loradag.evaluation.parity import Probe, parity, recorded
    from loradag.export.gguf_format import count_types, write_gguf
    from loradag.export.importance import NOT_MEASURED, Importance, measure_importance
    from loradag.export.measurement import Inputs
    from loradag.export.plain_transformers import write_logits
    from loradag.export.runtimes import measure_in_llamacpp
    from loradag.models.loading import load_model

    configure(Runtime(threads=load_config(Path("params.yaml")).runtime.threads, device="cpu"))
    paths = Paths(Path())
    rows = [row.input_ids for row in read_rows(paths.prepared / "eval.parquet")[:ROWS]]
    prompts = [ids[:8] for ids in rows[:2]]
    calibrating = read_calibration_rows(
        paths.prepared / "calibration.parquet", CALIBRATION_ROWS, "export.type"
    )
    model = load_model(paths.merged, torch.float32)
    measured = measure_importance(model, calibrating)
    alike = Importance({k: np.ones_like(v) for k, v in measured.columns.items()}, 0)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        write_logits(model, rows, scratch / "merged")
        del model

        def measure(file: Path, of: list[list[int]], tokens: int) -> Any:
            inputs = Inputs([], [], of, prompts, tokens)
            place = Path(tempfile.mkdtemp(dir=scratch))
            return measure_in_llamacpp(file, inputs, place, threads())

        def perplexity(type: str, importance: Importance) -> tuple[Path, Any]:
            file = scratch / f"{type}.gguf"
            write_gguf(paths.merged, file, type, "model", importance)
            found = measure(file, rows, 1)
            probe = Probe(rows, [], [], 0)
            return file, parity(probe, recorded(scratch / "merged"), recorded(found.logits), [], [])

        print("| type | MB | matrices | perplexity | KL, nats | columns alike | speed |")
        print("|---|---:|---|---:|---:|---:|---:|", flush=True)
        reference = scratch / "f16.gguf"
        for type in TYPES:
            mixed = type in MIXED_TYPES
            unweighted = f"{perplexity(type, alike)[1].perplexity_after:.2f}" if mixed else ""
            file, moved = perplexity(type, measured if mixed else NOT_MEASURED)
            speeds: dict[Path, list[float]] = {file: [], reference: []}
            for _ in range(REPEATS):
                for each in speeds:
                    speeds[each].append(measure(each, rows[:1], NEW_TOKENS).tokens_per_second)
            kinds = ", ".join(f"{n} {kind}" for kind, n in count_types(file).items())
            cells = [
                type, f"{file.stat().st_size / 1e6:.0f}", kinds,
                f"{moved.perplexity_after:.2f}", f"{moved.mean_kl:.4f}", unweighted,
                f"{max(speeds[file]) / max(speeds[reference]):.2f}",
            ]  # fmt: skip
            print(f"| {' | '.join(cells)} |", flush=True)
            if file != reference:
                file.unlink()
        print(f"\nThe merged model in transformers: {moved.perplexity_before:.2f}; importance of "
              f"{measured.tokens} tokens.")  # fmt: skip


if __name__ == "__main__":
    main()
