import random

import numpy as np
import pytest

from loradag.data.near_duplicates import PERMUTATIONS, find_near_duplicates, signature

WORDS = [f"word{n}" for n in range(400)]


def text(changed: int) -> str:
    """Two hundred words, the last `changed` of them others."""
    return " ".join(WORDS[: 200 - changed] + WORDS[200 : 200 + changed])


@pytest.mark.parametrize("changed", [10, 40, 100])
def test_equal_values_estimate_the_jaccard_similarity(changed) -> None:
    one, other = (np.frombuffer(signature([t]), np.uint32) for t in (text(0), text(changed)))
    common = 196 - changed  # of the sets of 5 successive words
    jaccard = common / (2 * 196 - common)
    deviation = (jaccard * (1 - jaccard) / PERMUTATIONS) ** 0.5
    assert abs((one == other).mean() - jaccard) < 4 * deviation


def test_only_similar_rows_are_found_and_the_first_is_kept() -> None:
    draw = random.Random(0)
    others = [" ".join(draw.choices(WORDS, k=200)) for _ in range(50)]
    texts = [text(0), *others, text(6).upper(), text(190)]
    signatures = [signature([t]) for t in texts]
    ids = np.arange(100, 100 + len(texts), dtype=np.uint64)
    assert find_near_duplicates(ids, signatures, 0.7).tolist() == [151]
    assert find_near_duplicates(ids[::-1], signatures[::-1], 0.7).tolist() == [100]


def test_nearly_all_rows_at_the_threshold_are_found() -> None:
    """Of 300 pairs with a similarity of 0.8 or little more, against comparing all with all."""
    texts = []
    for number in range(300):
        words = [f"{number}w{n}" for n in range(80)]
        texts += [" ".join(words), " ".join([*words[:-7], *(f"{word}x" for word in words[-7:])])]
    signatures = [signature([t]) for t in texts]
    values = np.stack([np.frombuffer(s, np.uint32) for s in signatures])
    similar = int(((values[::2] == values[1::2]).mean(1) >= 0.8).sum())
    assert similar > 100
    found = find_near_duplicates(np.arange(600, dtype=np.uint64), signatures, 0.8)
    assert 0.9 * similar <= len(found) <= similar
