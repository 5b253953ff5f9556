"""Run many configurations, each as a cached DVC run; or, without `-m`, one in place.

    python -m stages.sweep -m adapter.r=4,8,16 quantize=nf4,int8

An ordinary Hydra application: `--help`, `--multirun`, `range()`, `choice()`, launchers and sweepers
work as Hydra documents them. A job runs in a workspace of its own on the shared cache, and returns
its perplexity.
"""

import subprocess
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import conf  # noqa: F401  # registers the schema
from loradag.config.composition import plain, write_params
from loradag.config.problems import LoradagError
from loradag.config.validation import validate
from loradag.sweeps.lifecycle import concluding


@hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")
def sweep(config: DictConfig) -> float | None:
    from loradag.sweeps.job import run_job

    settings = HydraConfig.get()
    config.checked = True  # else resolving checks the rules; `validate` is to report them
    OmegaConf.resolve(config)
    if settings.mode == RunMode.RUN:
        _run_in_place(config, Path(settings.runtime.cwd))
        return None
    job = run_job(
        plain(config), Path(settings.sweep.dir), settings.job.num, list(settings.overrides.task)
    )
    return job.perplexity if job.failure is None else None


def _run_in_place(config: DictConfig, project: Path) -> None:
    try:
        validate(plain(config), source="the configuration")
    except LoradagError as error:
        sys.exit(f"sweep: {error}")
    write_params(config, project)
    code = subprocess.call([sys.executable, "-m", "dvc", "repro"], cwd=project)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    with concluding():
        sweep()
