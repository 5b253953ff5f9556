"""Training in several processes, over gloo on the CPU: the numbers of one, and nothing lost."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loradag.compat.bitsandbytes import store_as
from loradag.config.composition import compose, write_params
from loradag.config.launch import Launch
from loradag.config.problems import LoradagError
from loradag.models.loading import load_quantized
from loradag.runtime import Paths
from loradag.training.batches import EvenBatchSampler
from loradag.training.processes import _error, machine_rank, run_ranks
from loradag.training.resume import last_checkpoint
from loradag.training.sharding import sharding_options
from loradag.training.shares import share_of
from tests.conftest import ROOT, run_stages, smoke_config
from tests.training.conftest import copied

DDP = Launch("ddp", 2, 1, None, False)
STRATEGIES = {
    "ddp-2": DDP,
    "ddp-4": replace(DDP, processes=4),
    "fsdp-2": Launch("fsdp", 2, 1, "full_shard", False),
    "fsdp-4": Launch("fsdp", 4, 1, "shard_grad_op", False),
}
# Two epochs whose last step is not full: 11 rows in steps of 4. Dropout draws from the random
# numbers of each process.
OPTIONS = {
    "dtype": "float32", "packing": False, "max_rows": 11, "max_steps": None, "epochs": 2.0,
    "batch_size": 2, "gradient_accumulation": 2, "warmup_steps": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _importable(monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def configured(config, launch=None, **options):
    train = replace(config.train, **OPTIONS | options)
    adapter = replace(config.adapter, dropout=0.0)
    return replace(config, train=train, adapter=adapter, launch=launch or config.launch)


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory):
    """The project and the report of a training in one process."""
    paths, config = copied(trained, tmp_path_factory.mktemp("alone"))
    return paths, run_stages(paths, configured(config), "train")["train"]


def curve(file: Path, column: str) -> list[float]:
    with file.open() as lines:
        return [float(point[column]) for point in csv.DictReader(lines)]


@pytest.mark.parametrize("name", ["ddp-2", "fsdp-4", pytest.param("ddp-4", marks=pytest.mark.slow),
                                  pytest.param("fsdp-2", marks=pytest.mark.slow)])  # fmt: skip
def test_any_number_of_processes_trains_what_one_does(trained, alone, tmp_path, name) -> None:
    paths, config = copied(trained, tmp_path)
    launch = STRATEGIES[name]
    report = run_stages(paths, configured(config, launch), "train")["train"]
    assert (report["launch"], report["processes"]) == (launch.strategy, launch.processes)
    expected_paths, expected = alone
    for key in ("steps", "tokens", "trainable_parameters", "total_parameters", "dtype"):
        assert report[key] == expected[key], key
    for file, column in (("loss", "loss"), ("loss", "grad_norm"), ("eval_loss", "eval_loss")):
        got = torch.tensor(curve(getattr(paths, file), column))
        wanted = torch.tensor(curve(getattr(expected_paths, file), column))
        torch.testing.assert_close(got, wanted, rtol=2e-6, atol=0)
    names = sorted(file.name for file in expected_paths.adapter.iterdir())
    assert sorted(file.name for file in paths.adapter.iterdir()) == names
    config_file = "adapter_config.json"
    assert (paths.adapter / config_file).read_bytes() == (
        expected_paths.adapter / config_file
    ).read_bytes()
    got, wanted = (
        load_file(p.adapter / "adapter_model.safetensors") for p in (paths, expected_paths)
    )
    assert list(got) == list(wanted)
    for key in wanted:
        torch.testing.assert_close(got[key], wanted[key], rtol=0, atol=1e-5)
    assert not list((paths.state / "checkpoints").glob("*"))


def configure(root: Path, *overrides: str) -> None:
    write_params(compose(["experiment=smoke", *overrides]), root)


def start(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"], cwd=root, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_and_reach(paths: Paths, step: int) -> subprocess.Popen[str]:
    """A training of which the checkpoint of `step` is written."""
    process = start(paths.root)
    deadline = time.monotonic() + 300
    while not list(paths.state.glob(f"checkpoints/*/checkpoint-{step}/trainer_state.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process


def ranks_of(parent: int) -> list[int]:
    """The processes that `parent` started, without multiprocessing's resource tracker."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [
        int(child) for child in children
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()
    ]  # fmt: skip


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_killed_processes_leave_nothing_behind_and_the_rerun_continues(trained, tmp_path) -> None:
    """First a rank is killed, then the stage itself; the third run ends the training."""
    paths, _ = copied(trained, tmp_path)
    overrides = ["train.max_steps=40", "train.eval_steps=40", "train.checkpoint_steps=1"]
    configure(tmp_path, "launch=ddp", *overrides)
    process = start_and_reach(paths, 3)
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, messages = process.communicate(timeout=120)
    assert process.returncode == 1
    errors = [line for line in messages.splitlines() if line.startswith("train: ")]
    assert len(errors) == 1
    assert "continue from the last checkpoint" in errors[0]
    assert "Traceback" not in messages
    assert not any(alive(rank) for rank in ranks)
    assert not paths.adapter.exists()

    process = start_and_reach(paths, 8)
    ranks = ranks_of(process.pid)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(alive(rank) for rank in ranks):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.05)

    process = start(tmp_path)
    messages = process.communicate(timeout=300)[1]
    assert process.returncode == 0, messages
    report = json.loads(paths.report("train").read_text())
    assert report["resumed_from_step"] >= 7
    assert report["steps"] == 40
    assert curve(paths.loss, "step") == list(range(1, 41))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_a_divided_training_that_is_interrupted_ends_as_an_undisturbed_one(
    trained, tmp_path
) -> None:
    """Also where it ends early: the patience that is left is part of a checkpoint."""
    overrides = [
        "launch=fsdp", "train.max_steps=20", "train.checkpoint_steps=1", "train.eval_steps=2",
        "train.early_stopping.patience=3", "train.early_stopping.threshold=10",
    ]  # fmt: skip
    undisturbed, _ = copied(trained, tmp_path / "undisturbed")
    configure(undisturbed.root, *overrides)
    process = start(undisturbed.root)
    messages = process.communicate(timeout=300)[1]
    assert process.returncode == 0, messages

    paths, _ = copied(trained, tmp_path / "interrupted")
    configure(paths.root, *overrides)
    process = start_and_reach(paths, 5)
    ranks = ranks_of(process.pid)
    process.send_signal(signal.SIGINT)
    messages = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "train: stopped. Run `dvc repro` to continue." in messages
    assert "Traceback" not in messages
    assert not any(alive(rank) for rank in ranks)
    process = start(paths.root)
    messages = process.communicate(timeout=300)[1]
    assert process.returncode == 0, messages

    got, expected = (json.loads(p.report("train").read_text()) for p in (paths, undisturbed))
    assert got["resumed_from_step"] >= 5
    assert expected["resumed_from_step"] == 0
    for report in (got, expected):
        assert (report["launch"], report["processes"]) == ("fsdp", 2)
        assert report["stopped_early"]
        assert report["steps"] == 8  # the first evaluation and three without an improvement
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (paths.adapter / file).read_bytes() == (undisturbed.adapter / file).read_bytes()
    for name in ("loss", "eval_loss"):
        assert getattr(paths, name).read_bytes() == getattr(undisturbed, name).read_bytes()


def fail(message: str) -> None:
    if os.environ["RANK"] == "1":
        raise LoradagError(message)
    time.sleep(20)


def out_of_memory() -> None:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


class Failure:
    """As torch's elastic launcher describes the end of a process."""

    def __init__(self, exitcode: int, message: object = "") -> None:
        self.exitcode, self.message = exitcode, message

    def signal_name(self) -> str:
        return signal.Signals(-self.exitcode).name


@pytest.mark.parametrize(
    ("failure", "kind", "text"),
    [
        (Failure(-9), LoradagError, "process 1 of 2 was ended from outside by SIGKILL"),
        (Failure(3), LoradagError, "exit code 3"),
        (
            Failure(1, {"message": "RuntimeError: [gloo] Connection reset by peer"}),
            LoradagError,
            "lost the connection to another one",
        ),
        (Failure(1, {"message": "LoradagError: the loss: nan"}), LoradagError, "^the loss: nan$"),
        (
            Failure(1, {"message": "KeyError: 1", "extraInfo": {"py_callstack": "Traceback"}}),
            RuntimeError,
            "Traceback",
        ),
    ],
)
def test_the_end_of_a_process_is_one_message(failure, kind, text) -> None:
    error = _error(1, failure, DDP)
    assert type(error) is kind
    assert re.search(text, str(error))


@pytest.mark.slow
def test_an_error_of_one_process_is_the_error_of_the_stage() -> None:
    with pytest.raises(LoradagError, match=r"^the loss is nan at step 3$"):
        run_ranks(DDP, fail, "the loss is nan at step 3")
    with pytest.raises(RuntimeError, match="can't allocate memory"):  # which run_stage knows
        run_ranks(DDP, out_of_memory)


def test_machines_need_an_address(monkeypatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(LoradagError, match="MASTER_ADDR"):
        run_ranks(replace(DDP, machines=2), fail, "")


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("accumulation", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 6])
def test_the_processes_share_the_rows_of_a_step(batch_size, accumulation, processes) -> None:
    if batch_size * accumulation % processes == 0:
        rows, passes = share_of(batch_size, accumulation, processes)
        assert rows * passes * processes == batch_size * accumulation
        if accumulation % processes == 0:
            assert rows == batch_size


def test_each_row_of_an_epoch_goes_to_one_process() -> None:
    batches = torch.utils.data.BatchSampler(range(11), 2, drop_last=False)
    even = EvenBatchSampler(batches, 4)
    listed = list(even)
    assert len(listed) == len(even) == 8
    assert [row for batch in listed for row in batch] == list(range(11))
    assert listed[-2:] == [[], []]


def test_a_checkpoint_without_the_state_of_every_process_is_passed_over(tmp_path) -> None:
    for step, ranks in ((2, (0, 1)), (4, (0,))):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}")
        for rank in ranks:
            torch.save({}, folder / f"rng_state_{rank}.pth")
    cut = tmp_path / "checkpoint-6"
    cut.mkdir()
    (cut / "trainer_state.json").write_text("{}")
    (cut / "rng_state_1.pth").write_bytes(b"PK")
    assert last_checkpoint(tmp_path, processes=2) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_codes_kept_as_floats_compute_the_same(trained, dtype) -> None:
    paths, _, _ = trained
    ids = torch.tensor([[5, 6, 7, 8]])
    bytes_, floats = (load_quantized(paths, dtype) for _ in range(2))
    store_as(floats, dtype)
    assert {p.dtype for p in floats.parameters()} == {dtype}
    assert floats.num_parameters() == bytes_.num_parameters()
    with torch.no_grad():
        assert torch.equal(floats(ids).logits, bytes_(ids).logits)


def test_the_options_of_a_divided_model_are_those_of_the_libraries() -> None:
    """Every key is one that transformers or DeepSpeed knows; FSDP recomputes by itself."""
    train = replace(smoke_config().train, gradient_checkpointing=True)
    fsdp = sharding_options(Launch("fsdp", 2, 1, "shard_grad_op", True), train)
    assert fsdp["fsdp_config"] == {
        "version": 2, "reshard_after_forward": False, "cpu_offload": True,
        "activation_checkpointing": True, "state_dict_type": "FULL_STATE_DICT",
    }  # fmt: skip
    assert not fsdp["gradient_checkpointing"]
    zero = sharding_options(Launch("deepspeed", 2, 1, "full_shard", True), train)
    assert zero["gradient_checkpointing"]
    assert zero["deepspeed"]["zero_optimization"] == {
        "stage": 3, "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "cpu"},
    }  # fmt: skip


def test_a_clusters_number_of_a_machine_counts_for_several_alone(monkeypatch) -> None:
    monkeypatch.setenv("SLURM_NODEID", "1")
    single = Launch("single", 1, 1, None, False)
    assert machine_rank(single) == 0
    assert machine_rank(replace(single, machines=2)) == 1
