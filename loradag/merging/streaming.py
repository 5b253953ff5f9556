"""Merge an adapter into a base of any size, holding one weight at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loradag.checkpoints.safetensors_reader import (
    DTYPES,
    FLOATS,
    Entry,
    read_entries,
    read_tensor,
    read_tensors,
)
from loradag.checkpoints.safetensors_writer import ShardWriter
from loradag.checkpoints.skeleton import Skeleton, read_skeleton
from loradag.compat.transformers import stored_pieces
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
    `dtype`. All experts of a layer are one parameter of the model, while most checkpoints have a
    tensor for each of them; then memory holds the update of the parameter, too. Where the adapter
    changes one of two tied embeddings they are untied, so that each is as it was trained: training
    kept the other as it was.

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
    skeleton = read_skeleton(base)
    updates = read_adapter(adapter, skeleton.parameters)
    stored = read_entries(base)
    owners = _owners(stored, updates, skeleton)
    targets, untied = _plan(stored, owners, updates, skeleton, dtype)
    layout = {target.name: target.entry for several in targets.values() for target in several}
    names = {parameter: name for name, parameter in owners.items()}
    merge = _Merge(updates, skeleton, stored)
    with ShardWriter(output, layout) as writer:
        for given, tensor in _read(base, stored, owners) if weights is None else weights:
            name = given if given in targets else names.get(skeleton.parameter(given), given)
            for target in targets.get(name, []):
                writer.write(target.name, merge(target.parameter, name, tensor))
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


def _owners(stored: Mapping[str, Entry], updates: Updates, skeleton: Skeleton) -> dict[str, str]:
    """The parameter that each stored tensor is, or of which it is a piece that is updated."""
    import torch

    owners = {name: skeleton.parameter(name) for name in stored}
    for parameter in updates.weights - set(owners.values()):
        if parameter in skeleton.parameters:
            whole = torch.empty(skeleton.parameters[parameter], device="meta")
            owners |= dict.fromkeys(_cut(parameter, whole, stored, skeleton), parameter)
    return owners


def _cut(
    parameter: str, value: torch.Tensor, stored: Container[str], skeleton: Skeleton
) -> dict[str, torch.Tensor]:
    """`value` of a parameter in the pieces that are stored, by their names."""
    pieces = stored_pieces(skeleton.model, parameter, value)
    return {
        name: piece
        for full, piece in pieces.items()
        for name in (full, full.removeprefix(f"{skeleton.prefix}."))
        if name in stored
    }


def _read(
    base: Path, stored: Mapping[str, Entry], owners: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the base, the pieces of a parameter one after the other."""
    for name in sorted(stored, key=lambda name: (owners[name], name)):
        yield name, read_tensor(base / stored[name].file, name)


def _plan(
    stored: Mapping[str, Entry],
    owners: Mapping[str, str],
    updates: Updates,
    skeleton: Skeleton,
    dtype: str,
) -> tuple[dict[str, list[Target]], bool]:
    """What is to be written from each tensor of the base, and whether that unties embeddings."""
    untied = {
        alias: source
        for alias, source in skeleton.tied.items()
        if {alias, source} & updates.weights
    }
    targets: dict[str, list[Target]] = {}
    for name, entry in stored.items():
        parameter = owners[name]
        if parameter in skeleton.tied:
            continue
        placed = dataclasses.replace(entry, dtype=_stored_dtype(entry, dtype))
        targets[name] = [Target(name, parameter, placed)] + [
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


class _Merge:
    """What each stored tensor becomes; of experts it holds the update of one parameter."""

    def __init__(self, updates: Updates, skeleton: Skeleton, stored: Mapping[str, Entry]) -> None:
        self.updates = updates
        self.skeleton = skeleton
        self.stored = stored
        self.pieces: dict[str, torch.Tensor] = {}

    def __call__(self, parameter: str, name: str, weight: torch.Tensor) -> torch.Tensor:
        """Of `weight`, which is the parameter, or its piece that is stored by the name."""
        full, update = self.updates.full.get(parameter), self.updates.low_rank.get(parameter)
        if full is not None:
            weight = self._piece(parameter, name, lambda: full)
        if update is None:
            return weight
        shape = self.skeleton.parameters[parameter]
        transposed = parameter.rpartition(".")[0] in self.skeleton.transposed
        try:
            if len(shape) == 3:
                return weight + self._piece(
                    parameter, name, lambda: update.of_experts(shape, transposed)
                )
            return update.apply(weight, transposed)
        except LoradagError as error:
            raise LoradagError(f"{parameter}: {error}") from error

    def _piece(self, parameter: str, name: str, whole: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The piece of `whole` that is stored by the name."""
        if self.skeleton.parameters.get(parameter) in (None, self.stored[name].shape):
            return whole()
        if name not in self.pieces:
            self.pieces = {}  # before the next takes its memory
            self.pieces = _cut(parameter, whole(), self.stored, self.skeleton)
        return self.pieces[name]
