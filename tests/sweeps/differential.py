"""Random sequences of what users do with the cache, against runs that have none.

Two clones of a toy project share a DVC cache. Hypothesis chooses what happens in them; after each
run and each sweep, every report must equal that of a cold run: the stages one after the other in an
empty folder, without DVC. What a sweep records as run must be what ran.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from loradag.comparison.job_records import JobRecord
from loradag.config.composition import compose, write_params
from tests.repository import copy_project
from tests.sweeps import toy
from tests.sweeps.counting import count_stages

ROOT = Path(__file__).parents[2]
ROWS, METHODS = (toy.ROWS, "4 5\n"), (toy.METHOD, "SHIFT = 1\n")
OUTS = ("artifacts/adapter", "artifacts/merged", "data", "plots/loss.csv", "reports/evaluate.json")
MEASURED = re.compile("seconds|per_second|^peak_|^resumed_from_step$")
CHOICE = st.sampled_from([0, 1])  # few values, so that runs come back to older ones
SUBSETS = st.lists(CHOICE, min_size=1, unique=True)

# Nothing is shrunk: a step takes seconds, and the steps of a failure are printed as they are.
SETTINGS = settings(
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    database=None,
)


@cache
def composed(*overrides: str) -> str:
    """`params.yaml` of `overrides`."""
    with tempfile.TemporaryDirectory() as folder:
        write_params(compose(list(overrides)), Path(folder))
        return (Path(folder) / "params.yaml").read_text()


@cache
def cold_toy_reports(params: str, rows: str, method: str) -> dict[str, Any]:
    """The reports of a run in an empty folder, by stage."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_toy(root, rows, method)
        (root / "params.yaml").write_text(params)
        run_all = f"import toy\nfor stage in {toy.STAGES}: toy.main(stage)"
        environment = os.environ | {"TOY_LOG": os.devnull}
        subprocess.run([sys.executable, "-c", run_all], cwd=root, env=environment, check=True)
        return read_reports(root)


def read_reports(root: Path) -> dict[str, Any]:
    """The reports by stage, without what two runs of the same stage measure differently."""
    paths = sorted((root / "reports").glob("*.json"))
    return {path.stem: repeatable(json.loads(path.read_text())) for path in paths}


def repeatable(content: Any) -> Any:
    """`content` without times, memory and what a resumed training records of itself."""
    if isinstance(content, dict):
        return {k: repeatable(v) for k, v in content.items() if not MEASURED.search(k)}
    return [repeatable(item) for item in content] if isinstance(content, list) else content


def write_toy(root: Path, rows: str, method: str) -> None:
    shutil.copy(toy.__file__, root / "toy.py")
    (root / "rows.txt").write_text(rows)
    (root / "method.py").write_text(method)


class Clone:
    """A Git and DVC repository of the toy pipeline on a cache that others use too."""

    base: tuple[str, ...] = ()  # overrides of every configuration
    ranks = ("4", "8")
    schemes = ("nf4", "int8")

    def __init__(self, root: Path, cache: Path, store: str) -> None:
        self.root, self.log = root, root.with_suffix(".log")
        self.rows, self.method = ROWS[0], METHODS[0]
        names = ("AUTHOR_NAME", "AUTHOR_EMAIL", "COMMITTER_NAME", "COMMITTER_EMAIL")
        self.environment = os.environ | {f"GIT_{name}": "a" for name in names}
        self.environment |= {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "MLFLOW_TRACKING_URI": store,
            "MLFLOW_EXPERIMENT_NAME": root.name,
        }
        (root / ".dvc").mkdir(parents=True)
        self.write_project()
        (root / ".dvc/config").write_text(
            f'[core]\nanalytics = false\n[cache]\ndir = {cache}\ntype = "hardlink,copy"\n'
            "[hydra]\nenabled = True\nconfig_module = conf\n"
        )
        (root / "params.yaml").write_text(composed(*self.base))
        for command in ("init -q", "add -A", "commit -qm Start"):
            subprocess.run(["git", *command.split()], cwd=root, env=self.environment, check=True)

    def write_project(self) -> None:
        (self.root / ".dvcignore").write_text("__pycache__\n")
        (self.root / ".gitignore").write_text("__pycache__\n.loradag\nmultirun\nsweep.html\n")
        (self.root / "dvc.yaml").write_text(toy.PIPELINE)
        write_toy(self.root, self.rows, self.method)
        self.environment |= {"PYTHONPATH": str(ROOT), "TOY_LOG": str(self.log)}

    def cold_reports(self, params: str) -> dict[str, Any]:
        return cold_toy_reports(params, self.rows, self.method)

    def edit_data(self, choice: int) -> None:
        self.rows = ROWS[choice]
        (self.root / "rows.txt").write_text(self.rows)

    def edit_code(self, choice: int) -> None:
        self.method = METHODS[choice]
        (self.root / "method.py").write_text(self.method)

    def start(self, *module: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *module], cwd=self.root, env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, *module: str) -> None:
        process = self.start(*module)
        output, _ = process.communicate(timeout=3000)
        assert process.returncode == 0, output

    def start_sweep(
        self, ranks: list[str], scheme: str, parallel: bool, **environment: str
    ) -> subprocess.Popen[str]:
        shutil.rmtree(self.root / "multirun", ignore_errors=True)
        launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"] if parallel else []
        grid = [f"adapter.r={','.join(ranks)}", f"quantize={scheme}"]
        return self.start("stages.sweep", "-m", *self.base, *grid, *launcher, **environment)

    def started(self) -> int:
        """How many stages have started since `ran` was asked."""
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def ran(self) -> Counter[str]:
        """How often each stage ran since the last time this was asked."""
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return Counter(lines)

    def check_run(self) -> None:
        expected = self.cold_reports((self.root / "params.yaml").read_text())
        assert read_reports(self.root) == expected

    def check_sweep(self, process: subprocess.Popen[str], jobs: int) -> None:
        """Check the jobs' reports, and that what they record as run is what ran."""
        output, _ = process.communicate(timeout=3000)
        assert process.returncode == 0, output
        records = [JobRecord.read(p.parent) for p in self.root.glob("multirun/*/*/job.json")]
        assert len(records) == jobs
        for job in records:
            assert job.failure is None
            expected = self.cold_reports(composed(*job.overrides))
            reports = {stage: repeatable(report) for stage, report in job.reports.items()}
            assert {"train", "evaluate"} <= reports.keys()
            assert reports == {stage: expected[stage] for stage in reports}, job.overrides
        assert Counter(name for job in records for name in job.ran) == self.ran()


class RealClone(Clone):
    """The project itself on the tiny model, with rows of a user's own."""

    base = (
        "experiment=smoke", "prepare=file", "prepare.path=rows.jsonl", "prepare.eval_fraction=0.2",
        "train.max_steps=2", "train.checkpoint_steps=1", "evaluate.samples=1", "merge.rows=2",
        "export=safetensors",
    )  # fmt: skip
    ranks = ("2", "4")

    def write_project(self) -> None:
        copy_project(self.root)
        counting = self.root.parent / f"{self.root.name}.counting"
        count_stages(counting)
        paths = os.pathsep.join([str(counting), str(self.root)])
        self.environment |= {"PYTHONPATH": paths, "COUNTED": str(self.log)}
        self.edit_data(0)
        self.edit_code(0)

    def cold_reports(self, params: str) -> dict[str, Any]:
        return cold_real_reports(params, self.rows, self.method)

    def edit_data(self, choice: int) -> None:
        rows = ({"prompt": f"What is {n}?", "completion": f"It is {n}."} for n in range(60))
        self.rows = "".join(json.dumps(row) + "\n" for row in list(rows)[: 60 - 10 * choice])
        (self.root / "rows.jsonl").write_text(self.rows)

    def edit_code(self, choice: int) -> None:
        path = self.root / "loradag/training/curve.py"
        self.method = (ROOT / "loradag/training/curve.py").read_text() + "# edited\n" * choice
        path.write_text(self.method)


@cache
def cold_real_reports(params: str, rows: str, method: str) -> dict[str, Any]:
    """The reports of `dvc repro` in an empty clone on a cache of its own, by stage."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "cold"
        clone = RealClone(root, Path(folder) / "cache", f"sqlite:///{folder}/mlflow.db")
        (root / "rows.jsonl").write_text(rows)
        (root / "loradag/training/curve.py").write_text(method)
        (root / "params.yaml").write_text(params)
        clone.run("dvc", "repro")
        return read_reports(root)


class Differential(RuleBasedStateMachine):
    clone_class: type[Clone] = Clone

    @initialize()
    def run_in_one_of_two_clones(self) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="differential-"))
        cache, store = self.place / "cache", os.environ["MLFLOW_TRACKING_URI"]
        self.clones = [self.clone_class(self.place / name, cache, store) for name in "ab"]
        self.repro(0)

    def teardown(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)

    @rule(clone=CHOICE)
    def repro(self, clone: int) -> None:
        self.clones[clone].run("dvc", "repro")
        self.clones[clone].check_run()

    @rule(clone=CHOICE, rank=CHOICE, scheme=CHOICE)
    def run_experiment(self, clone: int, rank: int, scheme: int) -> None:
        chosen = self.clones[clone]
        overrides = [*chosen.base, f"adapter.r={chosen.ranks[rank]}"]
        overrides.append(f"quantize={chosen.schemes[scheme]}")
        chosen.run("dvc", "exp", "run", *(word for o in overrides for word in ("-S", o)))
        assert (chosen.root / "params.yaml").read_text() == composed(*overrides)
        chosen.check_run()

    @rule(clone=CHOICE, rank=CHOICE, seed=CHOICE)
    def edit_params_and_repro(self, clone: int, rank: int, seed: int) -> None:
        path = self.clones[clone].root / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["adapter"]["r"], params["seed"] = int(self.clones[clone].ranks[rank]), seed
        path.write_text(yaml.safe_dump(params))
        self.repro(clone)

    @rule(clone=CHOICE, choice=CHOICE)
    def edit_data(self, clone: int, choice: int) -> None:
        self.clones[clone].edit_data(choice)

    @rule(clone=CHOICE, choice=CHOICE)
    def edit_code(self, clone: int, choice: int) -> None:
        self.clones[clone].edit_code(choice)

    @rule(clone=CHOICE, out=st.sampled_from(OUTS))
    def delete_output(self, clone: int, out: str) -> None:
        path = self.clones[clone].root / out
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @rule(clone=CHOICE)
    def collect_garbage(self, clone: int) -> None:
        """Also what the other clone alone uses."""
        if (self.clones[clone].root / "dvc.lock").exists():
            self.clones[clone].run("dvc", "gc", "-w", "-f")

    @rule(clone=CHOICE, ranks=SUBSETS, scheme=CHOICE, parallel=st.booleans())
    def sweep(self, clone: int, ranks: list[int], scheme: int, parallel: bool) -> None:
        chosen = self.clones[clone]
        chosen.ran()
        process = self._start_sweep(chosen, ranks, scheme, parallel)
        chosen.check_sweep(process, len(ranks))

    @rule(clone=CHOICE, stages=st.integers(1, 4), scheme=CHOICE)
    def kill_a_sweep(self, clone: int, stages: int, scheme: int) -> None:
        """Once it has started so many stages, if it gets that far."""
        chosen = self.clones[clone]
        chosen.ran()
        process = self._start_sweep(chosen, [0, 1], scheme, parallel=True, TOY_SECONDS="1")
        while process.poll() is None and chosen.started() < stages:
            time.sleep(0.05)
        process.kill()  # nothing, where it has ended before
        process.communicate()
        time.sleep(1)  # its jobs end by themselves

    @rule(ranks=SUBSETS, scheme=CHOICE)
    def sweep_in_both_clones_at_once(self, ranks: list[int], scheme: int) -> None:
        for clone in self.clones:
            clone.ran()
        processes = [self._start_sweep(clone, ranks, scheme, False) for clone in self.clones]
        for clone, process in zip(self.clones, processes, strict=True):
            clone.check_sweep(process, len(ranks))

    @staticmethod
    def _start_sweep(
        clone: Clone, ranks: list[int], scheme: int, parallel: bool, **environment: str
    ) -> subprocess.Popen[str]:
        values = [clone.ranks[rank] for rank in ranks]
        return clone.start_sweep(values, clone.schemes[scheme], parallel, **environment)


class RealDifferential(Differential):
    clone_class = RealClone
