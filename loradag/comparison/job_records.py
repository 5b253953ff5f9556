"""What a sweep and its jobs leave on disk below `multirun/`: `sweep.json` and `N/job.json`."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from loradag.runtime import write_json
from loradag.runtime.report_keys import Reports

# What a search can optimize, as `JobRecord` names it, and which way is better.
OBJECTIVES = {
    "perplexity": "minimize",
    "bytes": "minimize",
    "adapter_bytes": "minimize",
    "trainable_parameters": "minimize",
    "tokens_per_second": "maximize",
}
SWEEP = "sweep.json"
JOB = "job.json"


@dataclass
class SweepRecord:
    """What every job needs to know of its sweep, in whatever process it runs."""

    key: str  # hash of all that the sweep is: its configs and the stages' sources
    name: str
    pid: int  # of the process that started it
    local: bool  # whether all jobs run on the host of that process
    project: str  # absolute
    cache: str  # absolute
    swept: list[str]  # the keys that take several values
    planned: int | None  # how many jobs there are to be; None: a search decides
    run_id: str  # the parent in MLflow
    threads: int | None  # for each job; None: as configured
    gpus: list[str]  # that the jobs divide among them; empty: each sees what the sweep sees
    remote: bool  # whether stages are shared through the project's DVC remote
    objectives: dict[str, str] = field(default_factory=dict)  # of a search, and their directions

    def write(self, folder: Path) -> None:
        write_json(folder / SWEEP, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> SweepRecord:
        return cls(**json.loads((folder / SWEEP).read_text(encoding="utf-8")))


@dataclass
class JobRecord:
    """How a job went. With its reports and its loss curve."""

    number: int
    overrides: list[str]  # all of them, as Hydra takes them
    swept: dict[str, str]  # of these, the keys that the sweep varies
    failure: str | None = None  # None: it did not fail
    pruned: str | None = None  # where and why a search ended its training
    run_id: str | None = None  # in MLflow
    ran_before: list[str] = field(default_factory=list)  # stages that an earlier try ran
    stages: list[dict[str, Any]] = field(default_factory=list)  # name, ran, seconds
    saved_seconds: float = 0.0  # what the stages from the cache took when they ran
    reports: Reports = field(default_factory=Reports)
    adapter_bytes: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)  # (step, loss)
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (step, held-out loss)

    def write(self, folder: Path) -> None:
        write_json(folder / JOB, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> JobRecord:
        return cls(**json.loads((folder / JOB).read_text(encoding="utf-8")))

    @property
    def name(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.swept.items()) or "the one job"

    @property
    def ran(self) -> list[str]:
        return [stage["name"] for stage in self.stages if stage["ran"]]

    @property
    def seconds(self) -> float:
        """What the stages that ran here took."""
        return float(sum(stage["seconds"] for stage in self.stages if stage["ran"]))

    @property
    def perplexity(self) -> float | None:
        """Of the tuned model on held-out tokens."""
        evaluate = self.reports.get("evaluate")
        return None if evaluate is None else evaluate["adapter"]["perplexity"]

    @property
    def bytes(self) -> int | None:
        """Of what has to be stored to run the tuned model: the quantized base and the adapter."""
        quantize = self.reports.get("quantize")
        if quantize is None or "train" not in self.reports:
            return None
        return quantize["bytes"] + self.adapter_bytes

    @property
    def trainable_parameters(self) -> int | None:
        train = self.reports.get("train")
        return None if train is None else train["trainable_parameters"]

    @property
    def tokens_per_second(self) -> float | None:
        """In training; as measured when the stage ran."""
        train = self.reports.get("train")
        return None if train is None else train["tokens_per_second"]


def read_jobs(folder: Path) -> list[JobRecord]:
    """The jobs that came to an end, by number."""
    keys = SweepRecord.read(folder).swept
    jobs = [JobRecord.read(path.parent) for path in folder.glob(f"*/{JOB}")]
    for job in jobs:
        job.swept = {key: job.swept[key] for key in keys if key in job.swept}  # JSON sorted them
    return sorted(jobs, key=lambda job: job.number)


def write_table(path: Path, jobs: Sequence[JobRecord], keys: Sequence[str]) -> None:
    """The jobs as CSV, which MLflow shows as a table."""
    numbers = (
        "perplexity", "bytes", "trainable_parameters", "tokens_per_second", "seconds",
        "saved_seconds",
    )  # fmt: skip
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *keys, *numbers, "failure", "pruned"])
        for job in jobs:
            swept = [job.swept.get(key, "") for key in keys]
            measured = [getattr(job, name) for name in numbers]
            ends = [job.failure or "", job.pruned or ""]
            writer.writerow([job.number, *swept, *measured, *ends])
