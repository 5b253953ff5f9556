"""The same batches for any number of processes: every row of an epoch once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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


def spread(loader: DataLoader[Any], pad_token_id: int) -> None:
    """Let the processes' loader, prepared by accelerate, give each row of an epoch to one of them.

    accelerate fills the last batches with rows from the start of the epoch, which would be trained
    twice. Here the last batch is as short as with one process, and where a process gets no row it
    computes a single token without a loss.
    """
    shard: Any = loader.batch_sampler  # accelerate's BatchSamplerShard
    shard.batch_sampler = EvenBatchSampler(shard.batch_sampler, shard.num_processes)
    shard.batch_size, shard.even_batches = None, False  # batches of any size, none repeated
    collate: Callable[[list[Any]], Any] = loader.collate_fn
    blank = {"input_ids": [pad_token_id], "labels": [IGNORED], "seq_lengths": [1]}
    loader.collate_fn = lambda rows: collate(rows or [dict(blank)])
