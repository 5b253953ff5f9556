import math

import pytest
import torch

from loradag.quantization.errors import Error, compare


def test_errors_are_weighted_by_parameters():
    exact = [torch.full((4, 10), 2.0), torch.full((1, 10), 1.0)]
    lossy = [torch.full((4, 10), 1.5), torch.full((1, 10), 1.0)]
    total = sum((compare(a, b) for a, b in zip(exact, lossy, strict=True)), Error())
    together = compare(torch.cat(exact), torch.cat(lossy))
    assert total == together
    assert total.rmse == pytest.approx(math.sqrt(40 * 0.25 / 50))
    assert total.sqnr_db == pytest.approx(10 * math.log10((40 * 4 + 10) / (40 * 0.25)))


def test_no_loss_has_no_finite_ratio():
    same = torch.ones(2, 2)
    assert compare(same, same).as_dict() == {"rmse": 0.0}
    assert compare(same * 0, same * 0).sqnr_db is None
