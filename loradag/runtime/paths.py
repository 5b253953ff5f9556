"""Every path of the pipeline, in one place; `dvc.yaml` names the same."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Paths:
    """The paths of a project, below its root."""

    root: Path = Path()

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def base(self) -> Path:
        return self.root / "artifacts/base"

    @property
    def source(self) -> Path:
        return self.root / "data/source.json"

    @property
    def prepared(self) -> Path:
        return self.root / "data/prepared"

    @property
    def contract(self) -> Path:
        return self.prepared / "contract.json"

    @property
    def examples(self) -> Path:
        """A few rows as token texts and loss masks, which the report shows."""
        return self.prepared / "examples.json"

    @property
    def quantized(self) -> Path:
        return self.root / "artifacts/quantized"

    @property
    def baseline(self) -> Path:
        return self.root / "artifacts/baseline.json"

    @property
    def adapter(self) -> Path:
        return self.root / "artifacts/adapter"

    @property
    def merged(self) -> Path:
        return self.root / "artifacts/merged"

    @property
    def export(self) -> Path:
        return self.root / "artifacts/export"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def loss(self) -> Path:
        return self.root / "plots/loss.csv"

    @property
    def eval_loss(self) -> Path:
        return self.root / "plots/eval_loss.csv"

    @property
    def page(self) -> Path:
        return self.root / "report.html"

    @property
    def state(self) -> Path:
        """What is neither input nor output: checkpoints, the live MLflow run."""
        return self.root / ".loradag"

    def report(self, stage: str) -> Path:
        return self.reports / f"{stage}.json"
