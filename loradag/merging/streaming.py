"""Merge an adapter into a base of any size, holding one weight at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.checkpoints.safetensors_reader import (
    DTYPES,
    FLOATS,
    Entry,
    read_entries,
    read_tensors,
)
from loradag.checkpoints.safetensors_writer import ShardWriter
from loradag.checkpoints.skeleton import Skeleton, read_skeleton
from loradag.config.problems import LoradagError
from loradag.merging.low_rank import Updates, read_adapter

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Target:
    """One tensor of the merged checkpoint: its name there, the model's name of it, its place."""

    name: str
    parameter: str
    entry: Entry


def merge_streaming(
    base: Path,
    adapter: Path,
    output: Path,
    *,
    dtype: str,
    weights: Iterable[tuple[str, torch.Tensor]] | None = None,
) -> bool:
    """Write to `output` the weights of `base` with `adapter` merged in.

    Files and names are the base's. Each merged weight is computed in float32 and rounded once to
    `dtype`. Where the adapter changes one of two tied embeddings they are untied, so that each
    is as it was trained: training kept the other as it was.

    Args:
        base: config and weights.
        adapter: peft's config and weights.
        output: a folder that exists.
        dtype: of the merged weights; "auto" is what the base stores each in.
        weights: (name, tensor) to merge into instead of the base's own, such as the dequantized
            weights that training saw.

    Returns:
        Whether tied embeddings were untied.

    Raises:
        LoradagError: an update finds no weight, or a merged weight is not finite in `dtype`.
    """
    updates = read_adapter(adapter)
    skeleton = read_skeleton(base)
    targets, untied = _plan(read_entries(base), updates, skeleton, dtype)
    layout = {target.name: target.entry for several in targets.values() for target in several}
    with ShardWriter(output, layout) as writer:
        for name, tensor in read_tensors(base) if weights is None else weights:
            for target in targets.get(skeleton.parameter(name), []):
                writer.write(target.name, _merged(target.parameter, tensor, updates, skeleton))
    return untied


def cast(source: Path, output: Path, dtype: str) -> None:
    """Write to `output` the weights of `source`, its floating-point numbers in `dtype`.

    "auto" is what `source` stores each in.

    Raises:
        LoradagError: a weight is not finite in `dtype`.
    """
    layout = {
        name: dataclasses.replace(entry, dtype=_stored_dtype(entry, dtype))
        for name, entry in read_entries(source).items()
    }
    with ShardWriter(output, layout) as writer:
        for name, tensor in read_tensors(source):
            writer.write(name, tensor)


def _plan(
    stored: dict[str, Entry], updates: Updates, skeleton: Skeleton, dtype: str
) -> tuple[dict[str, list[Target]], bool]:
    """What is to be written from each parameter of the base, and whether that unties embeddings."""
    untied = {
        alias: source
        for alias, source in skeleton.tied.items()
        if {alias, source} & updates.weights
    }
    targets: dict[str, list[Target]] = {}
    for name, entry in stored.items():
        parameter = skeleton.parameter(name)
        if parameter in skeleton.tied:
            continue
        placed = dataclasses.replace(entry, dtype=_stored_dtype(entry, dtype))
        targets[parameter] = [Target(name, parameter, placed)] + [
            Target(alias, alias, placed) for alias, source in untied.items() if source == parameter
        ]
    found = {target.parameter for several in targets.values() for target in several}
    if lost := sorted(updates.weights - found):
        raise LoradagError(
            f"the adapter updates {lost[0]}, which the base does not have "
            f"({len(lost)} such weights). Train it on this base: `dvc repro train`."
        )
    return targets, bool(untied)


def _stored_dtype(entry: Entry, dtype: str) -> str:
    if dtype == "auto" or entry.dtype not in FLOATS:
        return entry.dtype
    return next(name for name, (of_torch, _) in DTYPES.items() if of_torch == dtype)


def _merged(
    parameter: str, weight: torch.Tensor, updates: Updates, skeleton: Skeleton
) -> torch.Tensor:
    module = parameter.removesuffix(".weight")
    weight = updates.full.get(parameter, weight)
    if parameter == module or module not in updates.low_rank:
        return weight
    try:
        return updates.low_rank[module].apply(weight, module in skeleton.transposed)
    except LoradagError as error:
        raise LoradagError(f"{parameter}: {error}") from error
