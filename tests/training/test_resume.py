"""Interrupted trainings continue to the same bytes; trainings with other inputs start anew."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from loradag.config.composition import compose, write_params
from loradag.runtime import Paths
from loradag.training.resume import LIBRARIES, code_files, last_checkpoint, training_key
from tests.conftest import ROOT, run_stages, smoke_config
from tests.training.conftest import copied, hashes

STAGE = [sys.executable, "-m", "stages.train"]


def start(root, code=ROOT) -> subprocess.Popen[str]:
    return subprocess.Popen(
        STAGE,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(code)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    messages = process.communicate(timeout=300)[1]
    assert process.returncode == 0, messages
    return messages


def wait_for_checkpoint(process: subprocess.Popen[str], paths: Paths, step: int) -> None:
    deadline = time.monotonic() + 300
    while not list(paths.state.glob(f"checkpoints/*/checkpoint-{step}/*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)


def killed(process: subprocess.Popen[str], paths: Paths) -> None:
    """Kill `process` when one checkpoint is complete and the next is being written."""
    wait_for_checkpoint(process, paths, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not paths.adapter.exists()


def project(trained, root) -> Paths:
    """The inputs of `train` in `root`, with a checkpoint at every step."""
    paths, _ = copied(trained, root)
    write_params(compose(["experiment=smoke", "train.checkpoint_steps=1"]), root)
    return paths


def read_report(paths: Paths) -> dict:
    return json.loads(paths.report("train").read_text())


def test_killed_it_continues_to_the_same_bytes(trained, tmp_path) -> None:
    paths = project(trained, tmp_path)
    killed(start(tmp_path), paths)
    finish(start(tmp_path))
    assert 0 < read_report(paths)["resumed_from_step"] < 8
    assert hashes(paths.adapter) == hashes(trained[0].adapter)
    assert paths.loss.read_bytes() == trained[0].loss.read_bytes()


@pytest.mark.slow
def test_an_adapter_of_experts_is_resumed_and_continued(tmp_path) -> None:
    overrides = [
        "quantize=none", "adapter.dropout=0", "train.checkpoint_steps=1", "export=safetensors",
        "model.config.model_type=mixtral", "+model.config.num_local_experts=4",
    ]  # fmt: skip
    config, whole, parts = smoke_config(*overrides), Paths(tmp_path / "1"), Paths(tmp_path / "2")
    whole.root.mkdir()
    run_stages(whole, config, "fetch", "prepare", "quantize")
    write_params(compose(["experiment=smoke", *overrides]), whole.root)
    shutil.copytree(whole.root, parts.root)
    finish(start(whole.root))
    killed(start(parts.root), parts)
    finish(start(parts.root))
    assert 0 < read_report(parts)["resumed_from_step"] < 8
    assert hashes(parts.adapter) == hashes(whole.adapter)

    still = replace(config.train, learning_rate=1e-9, max_steps=1, warmup_steps=0)
    adapter = replace(config.adapter, start=str(whole.adapter))
    run_stages(parts, replace(config, train=still, adapter=adapter), "train")
    before, after = (load_file(p.adapter / "adapter_model.safetensors") for p in (whole, parts))
    assert before.keys() == after.keys()
    assert any(".experts.base_layer.lora_B" in name and t.any() for name, t in before.items())
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)


def test_killed_and_edited_it_starts_anew(trained, tmp_path) -> None:
    """The checkpoints of other code are no start for this code."""
    paths = project(trained, tmp_path)
    code = tmp_path / "code"
    for name in ("conf", "loradag", "stages"):
        shutil.copytree(ROOT / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "dvc.yaml", code)
    killed(start(tmp_path, code), paths)
    with (code / "loradag/training/trainer.py").open("a") as file:
        file.write("# edited\n")
    finish(start(tmp_path, code))
    assert read_report(paths)["resumed_from_step"] == 0


def test_two_trainings_with_the_same_inputs_take_turns(trained, tmp_path) -> None:
    """As a job of a sweep and `dvc repro` do: they share the folder of checkpoints."""
    first, second = (project(trained, tmp_path / name) for name in ("first", "second"))
    second.state.mkdir()
    (first.state / "checkpoints").mkdir(parents=True)
    (second.state / "checkpoints").symlink_to(first.state / "checkpoints")
    earlier = start(first.root)
    wait_for_checkpoint(earlier, first, 1)
    earlier.send_signal(signal.SIGSTOP)
    later = start(second.root)
    while "train: another process trains with the same inputs" not in later.stderr.readline():
        assert later.poll() is None
    earlier.send_signal(signal.SIGCONT)
    finish(earlier)
    finish(later)
    assert hashes(first.adapter) == hashes(second.adapter)
    assert not list((first.state / "checkpoints").iterdir())


@pytest.fixture
def inputs(tmp_path) -> tuple[Paths, object]:
    """Small stand-ins for the inputs of `train`, and the code with its `dvc.yaml`."""
    paths, code = Paths(tmp_path / "project"), tmp_path / "code"
    for path in (
        paths.prepared / "train.parquet",
        paths.quantized / "model.safetensors",
        paths.base / "pin.json",
        paths.base / "tokenizer.json",
        paths.base / "model.safetensors",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("as it was")
    for source in [*code_files(ROOT), ROOT / "dvc.yaml", ROOT / "loradag/tracking/live.py"]:
        target = code / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)
    return paths, code


@pytest.mark.parametrize(
    ("file", "shapes"),
    [
        ("project/data/prepared/train.parquet", True),
        ("project/artifacts/quantized/model.safetensors", True),
        ("project/artifacts/base/pin.json", True),
        ("project/artifacts/base/tokenizer.json", True),
        ("project/artifacts/base/model.safetensors", False),  # pinned in pin.json
        ("code/stages/train.py", True),
        ("code/loradag/training/lora.py", True),
        ("code/loradag/models/loading.py", True),
        ("code/loradag/tracking/live.py", False),
    ],
)
def test_the_key_follows_every_file_that_shapes_the_result(inputs, tmp_path, file, shapes) -> None:
    paths, code = inputs
    before = training_key(paths, [], code=code)
    assert training_key(paths, [], code=code) == before
    with (tmp_path / file).open("a") as changed:
        changed.write("# edited")
    assert (training_key(paths, [], code=code) != before) == shapes


def test_the_key_follows_options_and_libraries(inputs, monkeypatch) -> None:
    paths, code = inputs
    options = [{"r": 8}, {"dtype": "auto"}, 0, "torch.float32", "cpu"]
    keys = [training_key(paths, options, code=code)]
    for index, value in enumerate(({"r": 4}, {"dtype": "float32"}, 1, "torch.bfloat16", "cuda")):
        keys.append(
            training_key(paths, [*options[:index], value, *options[index + 1 :]], code=code)
        )
    for library in LIBRARIES:
        with monkeypatch.context() as patched:
            patched.setattr(
                "importlib.metadata.version", lambda name, new=library: str(name == new)
            )
            keys.append(training_key(paths, options, code=code))
    assert len(set(keys)) == len(keys)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path) -> None:
    for step, state in ((2, "{}"), (10, '{"global_st'), (12, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
    assert last_checkpoint(tmp_path / "none") is None


class Interrupts:
    def __reduce__(self):
        raise KeyboardInterrupt


def test_a_checkpoint_whose_second_process_was_interrupted_is_passed_over(tmp_path) -> None:
    for step, content in ((1, []), (2, [torch.ones(3), Interrupts()])):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        with suppress(KeyboardInterrupt):
            torch.save(content, folder / "rng_state_1.pth")
    assert last_checkpoint(tmp_path, processes=2) == tmp_path / "checkpoint-1"
