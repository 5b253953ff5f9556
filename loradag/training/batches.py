"""The same batches for any number of processes: every row of an epoch once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader

from loradag.training.guards import IGNORED


class EvenBatchSampler(BatchSampler):
    """The batches of another sampler, and empty ones up to a multiple of `processes`."""

    def __init__(self, batches: BatchSampler, processes: int) -> None:
        super().__init__(batches.sampler, batches.batch_size, batches.drop_last)
        self.processes = processes

    def __iter__(self) -> Iterator[list[int]]:
        yield from super().__iter__()
        yield from [[] for _ in range(super().__len__(), len(self))]

    def __len__(self) -> int:
        return -(-super().__len__() // self.processes) * self.processes


def spread(loader: DataLoader[Any]) -> None:
    """Let the processes' loader, prepared by accelerate, give each row of an epoch to one of them.

    accelerate fills the last batches with rows from the start of the epoch, which would be trained
    twice. Here the last batch is as short as with one process, and a process may get an empty one.
    """
    shard: Any = loader.batch_sampler  # accelerate's BatchSamplerShard
    shard.batch_sampler = EvenBatchSampler(shard.batch_sampler, shard.num_processes)
    shard.batch_size, shard.even_batches = None, False  # batches of any size, none repeated


def accepting_no_rows(collate: Callable[[list[Any]], Any], pad_token_id: int) -> Any:
    """`collate`, which of no rows makes one token of padding without a loss.

    A process without rows takes part in the step of the others all the same.
    """

    def collated(rows: list[Any]) -> Any:
        if rows:
            return collate(rows)
        token = torch.tensor([[pad_token_id]])
        return {
            "input_ids": token,
            "labels": torch.full_like(token, IGNORED),
            "position_ids": torch.zeros_like(token),
        }

    return collated
