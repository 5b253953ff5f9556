"""The contract of a stage: a function of paths and params sections that returns its report."""

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError
from loradag.config.sections import Config
from loradag.config.validation import load_config
from loradag.runtime.atomic import write_json
from loradag.runtime.environment import configure
from loradag.runtime.paths import Paths
from loradag.runtime.report_files import check_report


def run_stage(
    function: Callable[..., Mapping[str, Any] | None],
    *,
    check: Callable[[Paths, Config], None] | None = None,
) -> None:
    """Run `function` as the stage of its name, in the working directory.

    The whole of `params.yaml` is validated first. A `LoradagError` ends the process with its
    message and exit code 1.

    Args:
        function: its parameters after `paths` name the sections of `params.yaml` that it reads. If
            it returns a report, that is checked against its class in `report_keys` and written,
            with `seconds` added, to `reports/NAME.json`.
        check: refuses a configuration before the stage starts.
    """
    name = function.__name__
    paths = Paths(Path())
    mark_started(paths, name)
    try:
        config = load_config(paths.params)
        configure(config.runtime)
        if check is not None:
            check(paths, config)
        started = time.perf_counter()
        report = function(paths, **sections(function, config))
        if report is not None:
            seconds = round(time.perf_counter() - started, 3)
            write_json(paths.report(name), check_report(name, {**report, "seconds": seconds}))
            mark_ran(paths, name)
    except LoradagError as error:
        sys.exit(f"{name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped. Run `dvc repro` to continue.")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        sys.exit(f"{name}: out of memory. {_memory_remedy(name)}\n  ({error})")


def mark_started(paths: Paths, stage: str) -> None:
    """Record that the stage's command was started here, so its outs are not from the cache."""
    write_json(_mark(paths, stage), None)


def start_time(paths: Paths, stage: str) -> float:
    """When the stage's command started, in seconds since the epoch."""
    return _mark(paths, stage).stat().st_mtime


def has_started(paths: Paths, stage: str) -> bool:
    """Whether the stage's command was ever started here, even if it did not finish."""
    return _mark(paths, stage).exists()


def mark_ran(paths: Paths, stage: str) -> None:
    """Record that a run here wrote the present report, so it is not from the cache."""
    write_json(_mark(paths, stage), _digest(paths.report(stage)))


def has_run(paths: Paths, stage: str) -> bool:
    """Whether a run here wrote the present report; False: it came from the cache."""
    mark = _mark(paths, stage)
    return mark.exists() and json.loads(mark.read_text()) == _digest(paths.report(stage))


def _mark(paths: Paths, stage: str) -> Path:
    return paths.state / "ran" / f"{stage}.json"


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sections(function: Callable[..., Any], config: Config) -> dict[str, Any]:
    """The sections of `config` that the signature of `function` names."""
    names = [name for name in inspect.signature(function).parameters if name != "paths"]
    return {name: getattr(config, name) for name in names}


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate" in text


def _memory_remedy(stage: str) -> str:
    return {
        "train": "Lower train.batch_size (and raise train.gradient_accumulation), set "
        "train.gradient_checkpointing=true, or take quantize=nf4.",
        "evaluate": "Lower evaluate.batch_tokens or evaluate.window.",
    }.get(stage, "Take a smaller model, or a machine with more memory.")
