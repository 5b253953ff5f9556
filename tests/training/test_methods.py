"""Each method through the real stages: resumed to the same bytes, and read back as trained."""

import dataclasses
import json
import shutil

import pytest

from loradag.checkpoints.safetensors_reader import read_entries
from loradag.models.pinning import sha256
from loradag.training.guards import Guards
from tests.conftest import run_stages

METHODS = {
    "quantized_lora": ["adapter=quantized_lora"],
    "qat": ["quantize=none", "adapter=none", "train=qat"],
    "qat_lora": ["quantize=none", "adapter=lora", "train=qat", "train.activation_bits=8"],
    "bitnet": ["quantize=none", "adapter=none", "train=bitnet"],
}
SHORT = ["train.max_steps=4", "train.batch_size=2", "train.checkpoint_steps=2"]


@pytest.mark.parametrize("method", METHODS)
def test_stopped_and_resumed_it_ends_in_the_same_bytes(project, monkeypatch, method) -> None:
    paths, config = project(*METHODS[method], *SHORT)
    run_stages(paths, config, "prepare", "quantize")

    def stop(self, args, state, control, **_) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Guards, "on_log", stop)
        with pytest.raises(KeyboardInterrupt):
            run_stages(paths, config, "train")
    assert not paths.adapter.exists()
    resumed = run_stages(paths, config, "train")["train"]
    assert resumed["resumed_from_step"] == 2
    bytes_resumed = {file.name: sha256(file) for file in paths.adapter.iterdir()}
    shutil.rmtree(paths.adapter)
    whole = run_stages(paths, config, "train")["train"]
    assert whole["resumed_from_step"] == 0
    assert {file.name: sha256(file) for file in paths.adapter.iterdir()} == bytes_resumed

    assert whole["method"] == method
    share = whole["trainable_parameters"] / whole["total_parameters"]
    assert (share == 1) == ("lora" not in method)
    merged = run_stages(paths, config, "merge")["merge"]
    assert merged["passed"]
    if method != "quantized_lora":  # the whole checkpoint is passed on
        assert merged["max_abs_logit_diff"] == 0
        assert json.loads((paths.merged / "config.json").read_text())["use_cache"]
        merge = dataclasses.replace(config.merge, dtype="float16")
        halved = run_stages(paths, dataclasses.replace(config, merge=merge), "merge")["merge"]
        assert halved["mean_kl"] < merge.tolerance.rounding
        stored = {entry.dtype for entry in read_entries(paths.merged).values()}
        assert stored - {"U8"} == {"F16"}  # bytes are packed ternary weights
