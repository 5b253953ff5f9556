import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loradag.config.problems import LoradagError
from loradag.evaluation import perplexity
from loradag.evaluation.perplexity import score, token_nll, windows
from loradag.models.loading import load_model


@pytest.fixture(scope="module")
def model(tiny_base):
    return load_model(tiny_base, torch.float32)


def rows_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 1024, (length,), generator=generator).tolist() for length in lengths]


@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_every_token_but_the_first_is_scored_once_with_enough_context(length, window, data) -> None:
    stride = data.draw(st.integers(1, window))
    scored = []
    for at, piece in enumerate(windows(list(range(length)), [1] * length, window, stride)):
        assert len(piece.ids) <= window
        new = [id for id, counts in zip(piece.ids, piece.scored, strict=True) if counts]
        assert at == 0 or new[0] - piece.ids[0] >= window - stride
        scored += new
    assert scored == list(range(1, length))


def test_it_equals_transformers_own_loss(model) -> None:
    rows = rows_of(40, 17, 64)
    nll, tokens = 0.0, 0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            nll += float(model(ids, labels=ids).loss) * (len(row) - 1)
            tokens += len(row) - 1
    scored = score(model, rows, None, window=64, stride=64, batch_tokens=10_000)
    assert scored.tokens == tokens
    # float32 sums of a few hundred terms of size ten
    assert math.isclose(scored.perplexity, math.exp(nll / tokens), rel_tol=1e-5)


def test_batches_and_their_padding_do_not_change_it(model) -> None:
    rows = rows_of(5, 60, 33, 12)
    one = score(model, rows, None, window=64, stride=32, batch_tokens=1)
    many = score(model, rows, None, window=64, stride=32, batch_tokens=100_000)
    assert one.tokens == many.tokens
    assert math.isclose(one.nll_sum, many.nll_sum, rel_tol=1e-5)


def test_a_long_row_is_read_in_parts_to_the_same_end(model, monkeypatch) -> None:
    ids = torch.tensor(rows_of(50, 50))
    with torch.no_grad():
        whole = token_nll(model, ids)
        monkeypatch.setattr(perplexity, "LOGIT_BYTES", 4 * 1024 * 2 * 7)  # 7 positions at once
        parts = token_nll(model, ids)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_a_mask_counts_only_its_tokens(model) -> None:
    (row,) = rows_of(20)
    mask = [0] * 12 + [1] * 8
    scored = score(model, [row], [mask], window=64, stride=64, batch_tokens=64)
    with torch.no_grad():
        expected = token_nll(model, torch.tensor([row]))[0, 11:].sum()
    assert scored.tokens == 8
    assert math.isclose(scored.nll_sum, float(expected), rel_tol=1e-5)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(tiny_base) -> None:
    model = load_model(tiny_base, torch.float32)
    model.get_output_embeddings().weight.data.zero_()
    scored = score(model, rows_of(30), None, window=64, stride=64, batch_tokens=64)
    assert math.isclose(scored.perplexity, 1024, rel_tol=1e-5)


def test_where_no_token_is_scored_it_says_so(model) -> None:
    """Nothing predicts a row's first token."""
    for rows, masks in (([[5], [6]], None), (rows_of(4), [[1, 0, 0, 0]]), ([], None)):
        with pytest.raises(LoradagError, match="no token of the held-out rows is scored"):
            score(model, rows, masks, window=4, stride=2, batch_tokens=8)
    scored = score(model, [[5], *rows_of(4, 5)], None, window=4, stride=2, batch_tokens=8)
    assert scored.tokens == 3 + 4
