"""A sweep from its start, before any job runs, to its end, when they are compared."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.markup import escape

from loradag.comparison.job_records import SweepRecord, read_jobs, write_table
from loradag.compat import dvc
from loradag.config.problems import LoradagError
from loradag.planning.grid import (
    RUNTIME_SECTIONS,
    Composer,
    Job,
    compose_all,
    expand,
    is_grid,
    is_search,
    output_overrides,
    sweep_overrides,
    swept_keys,
)
from loradag.planning.pipeline import Pipeline
from loradag.sweeps.gpus import visible_gpus

if TYPE_CHECKING:
    from loradag.sweeps.search import Search

log = logging.getLogger(__name__)
_running: dict[str, Any] = {}  # the sweep of this process: its folder, and the lock on it


class Start(Callback):
    """Hydra's hook before the first job. Hydra turns a callback's exceptions into warnings."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        try:
            start(config)
        except LoradagError as error:
            sys.exit(f"sweep: {error}")
        except Exception:  # a defect: Hydra would run the jobs of a sweep that has not started
            traceback.print_exc()
            sys.exit(1)


def start(config: DictConfig) -> None:
    """Check every job, then prepare the sweep's folder and its run in MLflow.

    Raises:
        LoradagError: jobs that cannot be composed, or none that may run; nothing has run then.
    """
    from filelock import FileLock, Timeout

    from loradag.sweeps.mlflow_runs import open_parent
    from loradag.sweeps.workspaces import take_snapshot

    project = Path(config.hydra.runtime.cwd)
    composer = Composer(GlobalHydra.instance().config_loader())
    jobs = expand(composer, config) if is_grid(config) else []
    batch = len(jobs)
    options = None
    if is_search(config):
        from loradag.sweeps.search import Search, check_evaluated, read_options

        options = read_options(config, composer.loader)
        jobs = compose_all(composer, options.samples())
        check_evaluated(options, jobs)
    _report_problems(jobs)
    _check_cache(dvc.cache_folder(project))
    if config.sweep.remote:
        dvc.pull_runs(project)

    root = project / config.hydra.sweep.dir
    root.mkdir(parents=True, exist_ok=True)
    source = root / f".{os.getpid()}.source"
    key = _key(config, take_snapshot(project, source), _hash_inputs(jobs, config, project))
    folder = root / key[:10]
    lock = FileLock(root / f".{key[:10]}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        shutil.rmtree(source)
        raise LoradagError(
            "this sweep runs already, in another process. Wait for it, or, if that was on a host "
            f"that has died, delete {lock.lock_file}."
        ) from error
    _running["lock"] = lock
    # Of an earlier run of the same sweep. Its results are in the cache; a search continues in it.
    if folder.exists() and options is None:
        old = folder.rename(root / f".{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "source", ignore_errors=True)
    source.rename(folder / "source")
    if options is not None:
        _running["search"] = Search(options, folder, key[:10])

    overrides = output_overrides(sweep_overrides(config))
    name = "sweep of " + (" × ".join(swept_keys(config)) or "one job")
    SweepRecord(
        key=key,
        name=name,
        pid=os.getpid(),
        local=_jobs_at_once(config, batch) is not None,
        project=str(project),
        cache=str(dvc.cache_folder(project)),
        swept=swept_keys(config),
        planned=batch or None,
        run_id=open_parent(key, name, project, overrides),
        threads=_threads(config, batch),
        gpus=_gpus(config, batch),
        remote=config.sweep.remote,
        objectives=options.objectives if options else {},
    ).write(folder)
    _running["folder"] = folder  # from here on there is something to conclude
    _set_folder(config, folder)


def running_search() -> Search:
    """The search of this process, which `start` has opened."""
    search: Search = _running["search"]
    return search


@contextmanager
def concluding() -> Iterator[None]:
    """Around the sweep: at its end, or when it is stopped, compare the jobs; set the exit code."""
    code: Any = 0
    try:
        yield
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 130
    if "folder" in _running:
        code = _conclude(_running["folder"], code)
    sys.exit(code)


def _conclude(folder: Path, code: Any) -> Any:
    """Summarize the sweep in the terminal, in `sweep.html` and in MLflow; return the exit code."""
    from rich.console import Console

    from loradag.comparison.ranking import by_rank, pareto_front, settings, winner
    from loradag.planning.grid import promote_command
    from loradag.reporting.sweep_page import sweep_page
    from loradag.reporting.sweep_tables import job_table, seed_table
    from loradag.sweeps.mlflow_runs import close_parent

    sweep, jobs = SweepRecord.read(folder), read_jobs(folder)
    failed = [job for job in jobs if job.failure is not None]
    page = Path(sweep.project) / "sweep.html"
    best = winner(jobs)
    command = promote_command(best.overrides) if best else ""
    importances = _running["search"].importances() if "search" in _running else {}
    html = sweep_page(
        sweep.name, jobs, sweep.swept, command, sweep.objectives, importances, sweep.planned
    )
    page.write_text(html, encoding="utf-8")
    write_table(folder / "jobs.csv", by_rank(jobs), sweep.swept)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, 160)
    console.print(job_table(jobs, sweep.swept))
    ranked = settings(jobs)
    if any(len(setting.jobs) > 1 for setting in ranked):
        console.print(seed_table(ranked))
    for job in jobs:
        if job.pruned is not None:
            console.print(f"#{job.number} {job.name}:", job.pruned, markup=False)
    if len(sweep.objectives) > 1:
        front = " ".join(f"#{job.number}" for job in pareto_front(jobs, sweep.objectives))
        console.print(f"Pareto front of {' and '.join(sweep.objectives)}: {front}", markup=False)
    for job in failed:
        console.print(f"[red]#{job.number} {job.name} failed:[/red]", escape(str(job.failure)))
    console.print(f"Page: {page.name}; records: {folder.relative_to(sweep.project)}")
    if best is not None:
        complete = any(stage["name"] == "export" for stage in best.stages)
        runs = "only the report runs" if complete else "merge, export and report run"
        console.print(f"Promote the job of the best perplexity ({runs}; the rest is cached):")
        console.print(f"  {command}", markup=False)
    if code == 130:
        console.print("Stopped. The same command continues: what has run is in the cache.")
    elif failed:
        console.print("The same command runs the failed jobs again, and nothing that is complete.")
    status = "KILLED" if code == 130 else "FAILED" if failed or code else "FINISHED"
    try:
        close_parent(sweep, jobs, [page, folder / "jobs.csv", *folder.glob("*/job.json")], status)
        if sweep.remote:
            dvc.push_runs(Path(sweep.project))
    except LoradagError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return code or 1
    return code or int(bool(failed))


def _report_problems(jobs: list[Job]) -> None:
    bad = [job for job in jobs if job.problems]
    if not bad:
        return
    lines = [f"{len(bad)} of {len(jobs)} jobs break the rules:"]
    for job in bad:
        lines.append(f"  - {' '.join(job.overrides)}")
        lines += [f"      {problem}" for problem in job.problems]
    if len(bad) == len(jobs):
        raise LoradagError("\n".join([*lines, "So none runs."]))
    log.warning("\n".join([*lines, "They will count as failed; the others run."]))


def _check_cache(cache: Path) -> None:
    """Check that the jobs can write to the cache, where they put locks and results.

    Raises:
        LoradagError: they cannot.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise LoradagError(
            f"the DVC cache {cache} cannot be written to: {error.strerror}. Correct that, or set "
            "another folder: `dvc cache dir --local FOLDER`."
        ) from error


def _hash_inputs(jobs: list[Job], config: DictConfig, project: Path) -> dict[str, str]:
    """The hashes of the users' own rows and models that jobs read, by path."""
    fixed = {"inputs": OmegaConf.to_container(config.inputs, resolve=True)}  # where none is known
    hashes: dict[str, str] = {}
    pipeline = Pipeline(project, dvc.cache_folder(project))
    for params in [job.params for job in jobs if not job.problems] or [fixed]:
        sources = pipeline.sources(params)
        hashes |= {path: pipeline.hash_source(path)
                   for path in params["inputs"].values() if path in sources}  # fmt: skip
    return hashes


def _key(config: DictConfig, sources: str, inputs: Mapping[str, str]) -> str:
    """A hash of all that determines the sweep's results, so that the same command continues it."""
    container: Any = OmegaConf.to_container(config)
    params = {k: v for k, v in container.items() if k not in (*RUNTIME_SECTIONS, "hydra")}
    overrides = output_overrides(list(config.hydra.overrides.task))
    until = container["sweep"]["until"]
    # A search may be given more trials, or run more of them at once.
    amounts = ("n_trials", "n_jobs", "storage", "study_name")
    sweeper = {k: v for k, v in container["hydra"]["sweeper"].items() if k not in amounts}
    content = [params, until, sweeper, overrides, sources, inputs]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _jobs_at_once(config: DictConfig, jobs: int) -> int | None:
    """How many jobs run at once on this machine; None: they run elsewhere, or one by one."""
    launcher = config.hydra.launcher
    batch = jobs or config.hydra.sweeper.get("n_jobs", 1)
    if "joblib" in launcher._target_:
        return min((os.cpu_count() or 1) if launcher.n_jobs < 0 else launcher.n_jobs, batch)
    return batch if "LocalLauncher" in launcher._target_ else None


def _threads(config: DictConfig, jobs: int) -> int | None:
    """Threads for each of the jobs that run at once on this machine; None: as configured."""
    at_once = _jobs_at_once(config, jobs)
    if at_once is None or os.environ.get("LORADAG_THREADS") or config.runtime.threads is not None:
        return None
    return max(1, (os.cpu_count() or 1) // max(1, at_once))


def _gpus(config: DictConfig, jobs: int) -> list[str]:
    """The GPUs for jobs that run at once on this machine, one for each job."""
    if (_jobs_at_once(config, jobs) or 1) == 1 or config.runtime.device == "cpu":
        return []
    return visible_gpus()


def _set_folder(config: DictConfig, folder: Path) -> None:
    """Set the sweep's folder for Hydra, here and where a job composes its config anew."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.sweep.dir = str(folder)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
