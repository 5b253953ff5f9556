"""Rows that are nearly the same, found by MinHash.

Two rows are compared by the Jaccard similarity of their sets of 5 successive words, which the share
of equal MinHash values estimates (A. Broder 1997, On the resemblance and containment of documents).
Locality-sensitive hashing finds whom to compare a row with.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from loradag.data.content import normalize

if TYPE_CHECKING:
    import numpy as np

PERMUTATIONS = 64
WORDS = 5
# The weight of false negatives; that of false positives is the rest. With equal weights only 36 %
# of the pairs at a threshold of 0.8 would be compared; with this one, 95 %.
FALSE_NEGATIVES = 0.95
SCHEME = "affine32"  # of datasketch: 32-bit values


def signature(texts: Iterable[str]) -> bytes:
    """The MinHash values (PERMUTATIONS,) uint32 of a row, as bytes."""
    from datasketch import MinHash

    words = " ".join(map(normalize, texts)).split()
    last = max(1, len(words) - WORDS + 1)
    sets = {" ".join(words[at : at + WORDS]) for at in range(last)}
    minhash = MinHash(PERMUTATIONS, scheme=SCHEME)
    minhash.update_batch([text.encode() for text in sorted(sets)])
    values: bytes = minhash.hashvalues.astype("uint32").tobytes()
    return values


def find_near_duplicates(
    ids: "np.ndarray[Any, Any]", signatures: list[bytes], threshold: float
) -> "np.ndarray[Any, Any]":
    """The ids, sorted, of rows that are similar to one before them by `threshold` or more.

    Args:
        ids: (rows,) uint64, distinct, in the order in which rows are to be preferred.
        signatures: of the same rows.
        threshold: of the estimated Jaccard similarity.
    """
    import numpy as np
    from datasketch import MinHash, MinHashLSH

    index = MinHashLSH(threshold, PERMUTATIONS, weights=(1 - FALSE_NEGATIVES, FALSE_NEGATIVES))
    found = []
    for at, id in enumerate(ids.tolist()):
        values = np.frombuffer(signatures[at], np.uint32)
        minhash = MinHash(PERMUTATIONS, hashvalues=values, scheme=SCHEME)
        similar = (
            float((np.frombuffer(signatures[other], np.uint32) == values).mean())
            for other in index.query(minhash)
        )
        if any(similarity >= threshold for similarity in similar):
            found.append(id)
        else:
            index.insert(at, minhash)
    return np.sort(np.asarray(found, np.uint64))
