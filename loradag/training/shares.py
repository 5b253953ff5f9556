"""How the processes share the rows of an optimizer step."""

import math


def share_of(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Rows of a forward pass and forward passes a step of each process.

    Together the processes compute a step's `batch_size * accumulation` rows, whatever
    their number; it must divide them. Forward passes are divided first: a device then computes
    `batch_size` rows at once, as a single one does.
    """
    passes = math.gcd(accumulation, processes)
    return batch_size * passes // processes, accumulation // passes
