"""What this machine has, and what will be slow or fail here with `params.yaml`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loradag.config.problems import LoradagError
from loradag.config.sections import Config
from loradag.config.validation import load_config
from loradag.planning.disk import stage_bytes
from loradag.planning.memory import merge_bytes, train_bytes
from loradag.planning.parameters import model_shape
from loradag.planning.shape import Shape
from loradag.reporting.formatting import size
from loradag.runtime.environment import configure
from loradag.runtime.report_keys import Reports
from loradag.tracking.database import database_path
from loradag.tracking.store import shown_uri, store_uri

TIMEOUT = 5  # seconds for a server to answer


@dataclass(frozen=True)
class Finding:
    """A fact about the machine, and what follows from it for the run."""

    name: str
    value: str
    remark: str = ""  # what is slow or fails, and what to do
    fails: bool = False


def examine(project: Path) -> list[Finding]:
    """Every fact, in the order in which they are printed."""
    try:
        config = load_config(project / "params.yaml")
    except LoradagError as error:
        return [Finding("params.yaml", "not valid", str(error), fails=True)]
    configure(config.runtime)
    params = asdict(config)
    shape = model_shape(params["model"])
    return [
        *_device(config),
        *_memory(params, shape),
        _bitsandbytes(config),
        _disk(project, params, shape),
        _mlflow(project),
        _remote(project),
        _token(config),
    ]


def _device(config: Config) -> Iterator[Finding]:
    import torch

    from loradag.models.device import compute_dtype, device

    try:
        found = device()
    except LoradagError as error:
        yield Finding("device", "none", str(error), fails=True)
        return
    if found == "cuda":
        names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
        yield Finding("device", f"cuda: {', '.join(names)}")
    elif found == "mps":
        yield Finding("device", "mps", "bitsandbytes has no paged optimizers here.")
    else:
        remark = "No GPU: models above about 1 B parameters train for hours."
        yield Finding("device", f"cpu: {os.cpu_count()} cores", remark)
    native = str(compute_dtype("auto")).removeprefix("torch.")
    asked = config.train.dtype
    slow = asked not in ("auto", native, "float32") and found == "cpu"
    remark = f"train.dtype = {asked} is computed slowly on this CPU. Set train.dtype=auto."
    yield Finding("native dtype", native, remark if slow else "")


def _memory(params: dict[str, Any], shape: Shape | None) -> Iterator[Finding]:
    import torch

    from loradag.models.placement import free_bytes

    available = free_bytes("cuda" if torch.cuda.is_available() else "cpu")
    if shape is None:
        yield Finding("memory", f"{size(available)} available")
        return
    for stage, estimate in (("train", train_bytes), ("merge", merge_bytes)):
        needed = estimate(shape, params, None)
        fails = needed > available
        remark = (
            "It will run out of memory. Take a smaller model, quantize=nf4, a smaller batch, or "
            "train.gradient_checkpointing=true."
        )
        value = f"{size(available)} available, {stage} takes about {size(needed)} at most"
        yield Finding(f"memory, {stage}", value, remark if fails else "", fails)


def _bitsandbytes(config: Config) -> Finding:
    """Whether its kernels run here, by quantizing a weight."""
    needed = config.quantize.scheme in ("nf4", "fp4", "int8")
    try:
        import torch
        from bitsandbytes.functional import quantize_4bit

        from loradag.models.device import device

        quantize_4bit(torch.ones(64, 64, device=device()), quant_type="nf4")
    except Exception as error:  # a missing library, or a kernel that this device lacks
        remark = f"quantize={config.quantize.scheme} needs it. Take quantize=symmetric."
        value = f"does not run here: {str(error).splitlines()[0] if str(error) else type(error)}"
        return Finding("bitsandbytes", value, remark if needed else "", needed)
    return Finding("bitsandbytes", "its 4-bit kernels run")


def _disk(project: Path, params: dict[str, Any], shape: Shape | None) -> Finding:
    free = shutil.disk_usage(project).free
    if not os.access(project, os.W_OK):
        remark = "Every stage writes into the project's folder. Change its permissions."
        return Finding("disk", f"{project.resolve()} cannot be written to", remark, fails=True)
    if shape is None:
        return Finding("disk", f"{size(free)} free")
    needed = sum(stage_bytes(stage, shape, params) for stage in Reports.__annotations__)
    value = f"{size(free)} free, a run from nothing stores about {size(needed)}"
    fails = needed > free
    remark = "It will fill the disk. `dvc gc -w` frees the cache of what is not in the workspace."
    return Finding("disk", value, remark if fails else "", fails)


def _mlflow(project: Path) -> Finding:
    import requests

    uri = store_uri(project)
    shown = shown_uri(uri)
    file = database_path(uri)
    if file is not None and not os.access(file if file.exists() else file.parent, os.W_OK):
        remark = "It cannot be written to, so `report` will fail. Set MLFLOW_TRACKING_URI."
        return Finding("MLflow", shown, remark, fails=True)
    if not uri.startswith("http"):
        return Finding("MLflow", shown if file is not None else f"{shown}, not tried")
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=TIMEOUT).raise_for_status()
    except requests.RequestException as error:
        remark = f"It does not answer ({type(error).__name__}), so `report` will fail. Start it."
        return Finding("MLflow", shown, remark, fails=True)
    return Finding("MLflow", f"{shown}, it answers")


def _remote(project: Path) -> Finding:
    if not (project / ".dvc").is_dir():
        remark = "Run it in a clone of the project, or after `dvc init --no-scm`."
        return Finding("DVC", "this folder is no DVC repository", remark, fails=True)
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "remote", "list"], cwd=project, capture_output=True, text=True
    )
    names = [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]
    return Finding("DVC remote", ", ".join(names) or "none: the cache is on this machine alone")


def _token(config: Config) -> Finding:
    """Whether a token is set, without printing it."""
    is_set = bool(os.environ.get("HF_TOKEN"))
    from_hub = config.model.source == "hub"
    remark = f"{config.model.id} may be gated: accept its licence on the hub and set HF_TOKEN."
    value = "set" if is_set else "not set"
    return Finding("HF_TOKEN", value, remark if from_hub and not is_set else "")


def print_findings(findings: list[Finding], write: Callable[[str], object] = print) -> None:
    """Print a line for each fact, its remark below it, and a summary."""
    for finding in findings:
        write(f"{finding.name:<15} {finding.value}")
        if finding.remark:
            write(f"{'FAILS' if finding.fails else 'note':>15} {finding.remark}")
    failing = sum(finding.fails for finding in findings)
    write("Nothing here keeps a run from working." if not failing else f"{failing} will fail.")
