"""All sections of `params.yaml`."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from loradag.config.adapter import Adapter
from loradag.config.evaluate import Evaluate
from loradag.config.export import Export
from loradag.config.inputs import Inputs
from loradag.config.launch import Launch
from loradag.config.merge import Merge
from loradag.config.model import Model
from loradag.config.prepare import Prepare
from loradag.config.quantize import Quantize
from loradag.config.rules import at_least, one_of
from loradag.config.train import Train


@dataclass
class Runtime:
    """Options that cannot change an output, so no stage depends on them."""

    threads: int | None = at_least(1)  # null: as many as there are cores
    device: str = one_of("auto", "cpu", "cuda", "mps")


@dataclass
class Sweep:
    """Which stages the jobs of a sweep run, and which workspaces are kept."""

    keep: str = one_of("all", "failed", "none")
    until: str = one_of("evaluate", "export")  # the last stage of a job; `report` always runs
    remote: bool = MISSING  # take stages from DVC's default remote, and push what ran to it


@dataclass
class Config:
    """`params.yaml`: a section for each stage, and those that several stages share."""

    model: Model = field(default_factory=Model)
    prepare: Prepare = field(default_factory=Prepare)
    quantize: Quantize = field(default_factory=Quantize)
    adapter: Adapter = field(default_factory=Adapter)
    train: Train = field(default_factory=Train)
    launch: Launch = field(default_factory=Launch)
    evaluate: Evaluate = field(default_factory=Evaluate)
    merge: Merge = field(default_factory=Merge)
    export: Export = field(default_factory=Export)
    seed: int = at_least(0)  # of the adapter's initial weights, dropout and the order of rows
    runtime: Runtime = field(default_factory=Runtime)
    sweep: Sweep = field(default_factory=Sweep)
    inputs: Inputs = field(default_factory=Inputs)  # derived; deps in dvc.yaml
    checked: bool = MISSING  # composing this key checks the rules
