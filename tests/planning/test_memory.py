"""The estimate against what the stages' processes really take."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loradag.compat.trl import LOGIT_TOKENS
from loradag.config.composition import compose, plain, write_params
from loradag.config.sections import Config
from loradag.evaluation.perplexity import LOGIT_BYTES
from loradag.planning.memory import (
    HELD_OUT_BYTES,
    LOSS_TOKENS,
    dtype_bytes,
    longest_drawn,
    merge_bytes,
    stored_bytes,
    train_bytes,
    train_memory,
)
from loradag.planning.parameters import model_shape
from loradag.runtime import Paths

ROOT = Path(__file__).parents[2]
MIDDLE = [
    "model.config.hidden_size=512",
    "model.config.intermediate_size=1536",
    "model.config.num_hidden_layers=8",
    "model.config.num_attention_heads=8",
    "train.max_steps=2",
]


EXPERTS = [
    "quantize=none", "adapter.dropout=0", "train.dtype=float32", "export=safetensors",
    "model.config.model_type=mixtral", "+model.config.num_local_experts=4",
]  # fmt: skip
MEASURED = """
import atexit, runpy, sys
from loradag.runtime import peak_rss_bytes
atexit.register(lambda: print(peak_rss_bytes()))
runpy.run_module(sys.argv[1], run_name="__main__")
"""


def peak_bytes(stage: str, root: Path) -> int:
    """Peak memory of the process that runs `stage` in `root`."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, f"stages.{stage}"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


def estimates(params: dict[str, Any], lengths: dict[str, Any]) -> dict[str, int]:
    shape = model_shape(params["model"])
    assert shape is not None
    longest = longest_drawn(lengths, params["train"])
    return {
        "train": train_bytes(shape, params, longest),
        "merge": merge_bytes(shape, params, longest),
    }


def test_estimates_are_within_a_quarter_of_the_peaks(
    trained: tuple[Paths, Config, dict[str, dict[str, Any]]], tmp_path: Path
) -> None:
    paths, _, reports = trained
    for name in ("artifacts", "data"):
        shutil.copytree(paths.root / name, tmp_path / name)
    composed = compose(["experiment=smoke"])
    write_params(composed, tmp_path)
    for stage, estimate in estimates(plain(composed), reports["prepare"]["token_length"]).items():
        assert estimate == pytest.approx(peak_bytes(stage, tmp_path), rel=0.25), stage


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.batch_size=32"],
        ["quantize=none", "adapter=none", "train.batch_size=8"],
        ["quantize=none", "adapter=none", "train=qat", "train.batch_size=8"],
        ["quantize=none", "train=qat", "train.batch_size=8"],
        ["quantize=none", "adapter=none", "train=bitnet", "train.batch_size=8"],
        EXPERTS,
        [*EXPERTS, "train.gradient_checkpointing=true"],
    ],
    ids=str,
)
def test_estimates_hold_where_the_model_matters(overrides: list[str], tmp_path: Path) -> None:
    import json

    composed = compose(["experiment=smoke", *MIDDLE, *overrides])
    write_params(composed, tmp_path)
    for stage in ("fetch", "source", "prepare", "quantize"):
        peak_bytes(stage, tmp_path)
    lengths = json.loads((tmp_path / "reports/prepare.json").read_text())["token_length"]
    for stage, estimate in estimates(plain(composed), lengths).items():
        assert estimate == pytest.approx(peak_bytes(stage, tmp_path), rel=0.25), stage


def test_nf4_is_what_qlora_says() -> None:
    """QLoRA: 4 bits, and with double quantisation 0.127 more a parameter in blocks of 64."""
    params = plain(compose(["quantize=nf4"]))
    shape = model_shape(params["model"])
    assert shape is not None
    rest = 4 * (shape.parameters - shape.linear_parameters)
    bits = 8 * (stored_bytes(shape, params["quantize"], 4) - rest) / shape.linear_parameters
    assert bits == pytest.approx(4.127, abs=1e-3)


def test_the_longest_of_few_rows_is_shorter_than_the_longest_of_all() -> None:
    lengths = {
        "max": 100,
        "histogram": {"width": 10, "counts": [0, 500, 400, 90, 9, 0, 0, 0, 0, 1]},
    }
    train = {"max_steps": 10, "batch_size": 8, "gradient_accumulation": 1}
    assert longest_drawn(lengths, train) == 50
    assert longest_drawn(lengths, train | {"max_steps": None}) == 100
    assert longest_drawn(lengths, train | {"max_steps": 1000}) == 100


def test_losses_have_as_many_logits_as_the_formula_says() -> None:
    assert LOSS_TOKENS == LOGIT_TOKENS
    assert HELD_OUT_BYTES == LOGIT_BYTES


def test_dtypes_have_their_width() -> None:
    runtime = {"device": "cpu"}
    assert [dtype_bytes(n, runtime) for n in ("float32", "bfloat16", "float16")] == [4, 2, 2]


def test_the_table_of_the_docs_is_what_the_formula_gives() -> None:
    from benchmarks.scaling import table

    assert table() in (ROOT / "docs/scaling.md").read_text(encoding="utf-8")


def test_each_process_takes_what_its_launch_leaves_it() -> None:
    given = ["model=smollm2_135m", "train.batch_size=4"]
    alone = plain(compose(given))
    shape = model_shape(alone["model"])
    assert shape is not None
    memory = train_memory(shape, alone, 64)

    def each(*overrides: str) -> int:
        return train_bytes(shape, plain(compose([*given, *overrides])), 64)

    # Two processes compute half of the rows each.
    whole = memory.activations + memory.logits
    half = train_memory(shape, plain(compose([*given, "train.batch_size=2"])), 64)
    halved = memory.total - whole + half.activations + half.logits
    assert each("launch=ddp") == pytest.approx(halved, abs=2)
    divided = (memory.weights + memory.trained + memory.rounded) / 2
    assert each("launch=fsdp") == pytest.approx(halved - divided + memory.layer, abs=2)
    grad = each("launch=fsdp", "launch.sharding=shard_grad_op")
    assert grad == pytest.approx(halved - memory.trained / 2, abs=2)


def test_full_sharding_divides_weights_and_states_and_nothing_else() -> None:
    params = plain(compose(["model=smollm2_135m"]))
    shape = model_shape(params["model"])
    assert shape is not None
    memory = train_memory(shape, params, 64)
    assert memory.on_each_of(1) == memory.total == train_bytes(shape, params, 64)
    fixed = memory.process + memory.layer + memory.activations + memory.logits
    assert memory.on_each_of(10**12) == pytest.approx(fixed, rel=1e-6)
    divided = memory.on_each_of(2) - fixed
    assert memory.on_each_of(4) - fixed == pytest.approx(divided / 2, rel=1e-3)
