"""What composes, what is refused, and in which words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from loradag.config.composition import compose, plain
from loradag.config.problems import ConfigError, LoradagError
from loradag.config.validation import load_config, validate
from tests.conftest import ROOT

GROUPS = (
    "model", "prepare", "quantize", "adapter", "train", "launch", "evaluate", "merge", "export",
)  # fmt: skip
OPTIONS = [
    (group, path.stem)
    for group in GROUPS
    for path in sorted((ROOT / "conf" / group).glob("*.yaml"))
]
EXPERIMENTS = [path.stem for path in sorted((ROOT / "conf/experiment").glob("*.yaml"))]
# What an option needs beside it.
COMPANIONS = {
    ("model", "local"): ["model.path=/models/mine"],
    ("model", "hub"): ["model.id=someone/something"],
    ("prepare", "file"): ["prepare.path=rows.jsonl"],
    ("prepare", "hub"): ["prepare.id=someone/something"],
    ("prepare", "mix"): ["prepare.mix=[{path: a.jsonl, weight: 2}, {source: quotes}]"],
    ("prepare", "guanaco"): ["prepare.max_tokens=256"],
    ("adapter", "none"): ["quantize=none"],
    ("adapter", "pissa"): ["quantize=none"],
    ("adapter", "loftq"): ["merge.base=dequantized"],
    ("train", "bitnet"): ["quantize=none", "adapter=none"],
    ("train", "qat"): ["quantize=none"],
    **{("launch", name): ["train.batch_size=2"] for name in ("ddp", "fsdp", "deepspeed")},
}


def problems_of(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides))
    return [problem.key for problem in caught.value.problems]


def test_committed_params_are_what_conf_composes_to() -> None:
    assert (ROOT / "params.yaml").read_text(encoding="utf-8") == OmegaConf.to_yaml(compose([])), (
        "params.yaml is stale: write it with `python -m conf`"
    )


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes(group: str, option: str) -> None:
    compose([f"{group}={option}", *COMPANIONS.get((group, option), [])])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes(name: str) -> None:
    compose([f"experiment={name}"])


def test_all_problems_come_at_once_with_key_value_rule_and_remedy() -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["adapter.r=0", "adapter.dropout=1.5", "evaluate.window=9000", "train.method=sgd"])
    message = str(caught.value)
    for part in ("adapter.r = 0", "adapter.dropout = 1.5", "evaluate.window = 9000",
                 "model.context = 8192", "train.method = 'sgd'", "sft, qat, bitnet"):  # fmt: skip
        assert part in message


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["adapter=none"], ["adapter.variant"]),
        (["adapter=pissa"], ["adapter.variant"]),
        (["adapter=loftq"], ["merge.base"]),
        (["train=bitnet"], ["train.method"]),
        (["train=qat"], ["train.method"]),
        (["train=qat", "quantize=none", "adapter=dora"], ["adapter.variant"]),
        (["train=qat", "quantize=none", "adapter=quantized_lora"], ["adapter.variant"]),
        (
            ["train=qat", "quantize=none", "adapter.modules_to_save=[lm_head]"],
            ["adapter.modules_to_save"],
        ),
        (["train=qat", "quantize=none", "export.formats=[adapter]"], ["export.formats"]),
        (["adapter=dora", "export.formats=gguf_adapter"], ["adapter.variant"]),
        (
            ["adapter=loftq", "merge.base=dequantized", "export.formats=[gguf_adapter]"],
            ["adapter.variant"],
        ),
        (
            [
                "adapter.bias=all",
                "adapter.modules_to_save=[lm_head]",
                "export.formats=gguf_adapter",
            ],
            ["adapter.bias", "adapter.modules_to_save"],
        ),
        (["adapter=none", "quantize=none", "export.formats=gguf_adapter"], ["export.formats"]),
        (["train=qat", "quantize=none", "export.formats=gguf_adapter"], ["export.formats"]),
        (["export.type=q4_k_m", "prepare.calibration_fraction=0"], ["export.type"]),
        (
            ["export.type=[f16,q6_k]", "train=bitnet", "quantize=none", "adapter=none"],
            ["export.type"],
        ),
        (["export.push=only-a-name"], ["export.push"]),
        (["export.max_shard_size=5XB"], ["export.max_shard_size"]),
        (["export.max_shard_size=0GB"], ["export.max_shard_size"]),
        (["train=qat", "quantize=none", "train.group_size=null"], ["train.group_size"]),
        (
            ["train=bitnet", "quantize=none", "adapter=none", "train.activation_bits=null"],
            ["train.activation_bits"],
        ),
        (["train.weight_bits=4"], ["train.weight_bits"]),
        (["adapter.bits=4"], ["adapter.bits"]),
        (["adapter=quantized_lora", "adapter.bits=null"], ["adapter.bits"]),
        (["quantize=static_w8a8", "inputs.calibration=artifacts/base"], ["inputs.calibration"]),
        (
            ["quantize.scheme=symmetric"],
            [
                "quantize.bits",
                "quantize.granularity",
                "quantize.symmetric_range",
                "quantize.rounding",
            ],
        ),
        (["quantize=nf4", "quantize.rounding=awq"], ["quantize.rounding"]),
        (["quantize=none", "quantize.rounding=nearest"], ["quantize.rounding"]),
        (["quantize=static_w8a8", "quantize.rounding=nearest"], ["quantize.rounding"]),
        (["quantize=symmetric", "quantize.rounding=awq"], ["quantize.rounding"]),
        (["quantize=int8", "quantize.rounding=gptq"], ["quantize.rounding"]),
        (
            ["quantize=symmetric", "quantize.rounding=gptq", "quantize.calibration_rows=null"],
            ["quantize.calibration_rows"],
        ),
        (["prepare=guanaco", "train.loss=completion"], ["prepare.template"]),
        (["evaluate.stride=512"], ["evaluate.stride"]),
        (["evaluate.stride=256"], ["evaluate.stride"]),  # the first token of each window
        (["train.logging_steps=7"], ["train.checkpoint_steps"]),
        (["prepare.eval_fraction=0.99"], ["prepare.eval_fraction"]),
        (["model.source=hub", "model.id=null"], ["model.id"]),
        (["prepare=hub"], ["prepare.id"]),
        (["prepare.eval_split=test"], ["prepare.eval_split"]),
        (
            ["prepare=hub", "prepare.id=a/b", "prepare.eval_split=test", "prepare.eval_path=x.csv"],
            ["prepare.eval_split"],
        ),
        (["prepare=mix", "prepare.mix=[{path: a.csv, weight: 0}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{path: a.csv, id: b/c}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{path: a.csv, weight: -1}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{path: a.csv, weight: inf}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[5]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=5"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{path: 5}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{path: []}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{id: 5}]"], ["prepare.mix"]),
        (["prepare=mix", "prepare.mix=[{source: hub}]"], ["prepare.mix"]),
        (["prepare=file", "prepare.path=5"], ["prepare.path"]),
        (["prepare=file", "prepare.path=a/b.csv", "prepare.eval_path=5"], ["prepare.eval_path"]),
        (["prepare=file", "prepare.path=a/b.csv", "prepare.eval_path=[5]"], ["prepare.eval_path"]),
        (["prepare.path=rows.jsonl"], ["prepare.path"]),  # without prepare=file
        (["prepare.id=a/b", "prepare.mix=[{id: a/b}]"], ["prepare.id", "prepare.mix"]),
        (["prepare.min_characters=500"], ["prepare.min_characters"]),
        (
            ["prepare=file", "prepare.path=a/b.csv", "prepare.format=text"],
            ["prepare.template"],
        ),
        (
            [
                "prepare=file",
                "prepare.path=a/b.csv",
                "prepare.format=alpaca",
                "prepare.prompt='{a}'",
            ],
            ["prepare.prompt"],
        ),
        (
            ["prepare.format=messages"],
            ["prepare.template", "prepare.prompt", "prepare.completion"],
        ),
        (["prepare.template=rendered", "prepare.format=auto"], ["prepare.template"]),
        (["prepare.fields={no_such: x}"], ["prepare.fields"]),
        (["prepare.date=yesterday"], ["prepare.date"]),
        (["prepare.transform=my_rows"], ["prepare.transform"]),
        (["prepare.prompt=a", "prepare.completion=b"], ["prepare.completion"]),
        (["prepare=guanaco", "train.loss=assistant"], ["prepare.template"]),
        (["prepare.prompt='{'"], ["prepare.prompt"]),
        (["prepare.prompt='{}'"], ["prepare.prompt"]),
        (["prepare.completion='{0}'"], ["prepare.completion"]),
        (["prepare.completion='{author.name}'"], ["prepare.completion"]),
        (["prepare.completion='{author:d}'"], ["prepare.completion"]),
        (["prepare.completion='{author:{quote}}'"], ["prepare.completion"]),
        (["prepare.completion='{author!x}'"], ["prepare.completion"]),
        (["launch=ddp"], ["launch.processes"]),  # 1 row a step
        (["launch=ddp", "launch.processes=3", "train.batch_size=4"], ["launch.processes"]),
        (["launch=ddp", "launch.machines=3", "train.batch_size=2"], ["launch.processes"]),
        (["launch=ddp", "launch.processes=1"], ["launch.processes"]),
        (["launch.processes=2", "train.batch_size=2"], ["launch.processes"]),
        (["launch=fsdp", "launch.sharding=null", "train.batch_size=2"], ["launch.sharding"]),
        (["launch.sharding=full_shard"], ["launch.sharding"]),
        (["launch=ddp", "launch.offload=true", "train.batch_size=2"], ["launch.offload"]),
        (["launch=fsdp", "quantize=int8", "train.batch_size=2"], ["launch.strategy"]),
        (["launch=deepspeed", "quantize=symmetric", "train.batch_size=2"], ["launch.strategy"]),
        (
            ["launch=fsdp", "train.optimizer=adamw_8bit", "train.batch_size=2"],
            ["train.optimizer"],
        ),
        (["adapter.target_modules=[]"], ["adapter.target_modules"]),
        (["adapter.target_modules='('"], ["adapter.target_modules"]),
        (["adapter.target_modules=3"], ["adapter.target_modules"]),
        (["adapter.modules_to_save=[]"], ["adapter.modules_to_save"]),
    ],
)
def test_what_cannot_work_together_is_refused(overrides: list[str], keys: list[str]) -> None:
    assert sorted(problems_of(*overrides)) == sorted(keys)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("adapter.rank=4", "rank"),
        ("adapter.r=many", "Integer"),
        ("quantize=nf5", "nf4"),
        ("no_group=x", "no_group"),
    ],
)
def test_hydra_refuses_before_any_stage(override: str, says: str) -> None:
    with pytest.raises(LoradagError, match=says):
        compose([override])


def test_a_hand_edited_file_is_checked_the_same_way(tmp_path: Path) -> None:
    raw = plain(compose([]))
    raw["adapter"]["alphas"] = raw["adapter"].pop("alpha")
    raw["train"]["max_steps"] = "sixty"
    path = tmp_path / "params.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(raw)), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    keys = {problem.key for problem in caught.value.problems}
    assert keys == {"adapter.alphas", "adapter.alpha", "train.max_steps"}
    assert "Did you mean adapter.alpha?" in str(caught.value)


@pytest.mark.parametrize("text", ["", "- a list", "model: [", "model: 3"])
def test_a_broken_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml has"):
        load_config(path)


def test_a_missing_file_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="python -m conf"):
        load_config(tmp_path / "params.yaml")


def test_numbers_written_as_yaml_strings_are_numbers() -> None:
    raw = plain(compose([]))
    raw["train"]["learning_rate"] = "1e-4"
    assert validate(raw).train.learning_rate == 1e-4


def test_dvc_finds_the_configuration_of_an_installed_project(tmp_path) -> None:
    """`dvc exp run -S` imports `conf`, and Hydra its plugins, without the project as first path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(code: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    if run("from importlib.metadata import distribution; distribution('loradag')").returncode:
        pytest.skip("the project is not installed")
    done = run("import conf, stages, hydra_plugins.loradag_optuna")
    assert done.returncode == 0, done.stderr
