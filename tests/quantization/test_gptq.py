"""GPTQ against optimal brain quantisation, written down as its paper has it."""

import pytest
import torch

from loradag.quantization import schemes
from loradag.quantization.calibration import layer_inputs
from loradag.quantization.gptq import DAMPING, compensate
from tests.quantization.options import options


def correlated(tokens: int, columns: int) -> torch.Tensor:
    """Inputs (1, tokens, columns) whose columns depend on each other, some ten times larger."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(1, tokens, columns, generator=generator) @ mixing
    inputs[..., ::8] *= 10
    return inputs


def matrix(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def optimal_brain_quantization(weight, inputs, scale):
    """With H⁻¹ without the rounded column after each step (arXiv:2208.11580, equations 3 and 4)."""
    weight, tokens = weight.double().clone(), inputs[0].double()
    hessian = tokens.T @ tokens
    hessian += DAMPING * hessian.diagonal().mean() * torch.eye(len(hessian))
    inverse = torch.linalg.inv(hessian)
    for k in hessian.diagonal().argsort(descending=True).tolist():
        rounded = (weight[:, k] / scale).round() * scale
        error = (weight[:, k] - rounded) / inverse[k, k]
        weight -= torch.outer(error, inverse[k])
        weight[:, k] = rounded
        inverse -= torch.outer(inverse[:, k], inverse[k]) / inverse[k, k]
        inverse[k], inverse[:, k] = 0, 0
        inverse[k, k] = 1
    return weight


def test_columns_are_those_of_optimal_brain_quantization() -> None:
    """Also over several blocks of columns, and where there are fewer tokens than columns."""
    weight, inputs, scale = matrix(8, 300), correlated(200, 300), 0.25
    expected = optimal_brain_quantization(weight, inputs, scale)

    def round_column(column: torch.Tensor, _: int) -> torch.Tensor:
        return (column / scale).round() * scale

    got = compensate(weight, [inputs[:, :120], inputs[:, 120:]], round_column)
    agree = (got - expected).abs() < scale / 2  # a tie may fall to either side, and move others
    assert agree.double().mean() > 0.99


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("granularity", ["group", "channel", "tensor"])
def test_outputs_lose_less_than_by_nearest_rounding(scheme, bits, granularity) -> None:
    weight, inputs = matrix(64, 128), correlated(500, 128)
    size = 32 if granularity == "group" else None
    losses = {}
    for rounding in ("nearest", "gptq"):
        chosen = options(
            scheme, bits=bits, granularity=granularity, group_size=size, rounding=rounding
        )
        first, second = (
            schemes.encode("x.weight", weight, chosen, None, [inputs]) for _ in range(2)
        )
        assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
        restored = schemes.decode("x.weight", first.tensors, first.metadata)
        losses[rounding] = ((weight - restored) @ inputs[0].T).square().sum()
        codes = first.tensors["x._weight_qdata"]
        assert -(2 ** (bits - 1)) <= codes.min()
        assert codes.max() < 2 ** (bits - 1)
    assert losses["gptq"] < 0.7 * losses["nearest"]


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_it_is_nearest_rounding_where_inputs_do_not_depend_on_each_other(scheme) -> None:
    weight, inputs = matrix(64, 128), torch.eye(128)[None]
    codes = [
        schemes.encode("x.weight", weight, options(scheme, rounding=rounding), None, [inputs])
        for rounding in ("nearest", "gptq")
    ]
    restored = [schemes.decode("x.weight", one.tensors, one.metadata) for one in codes]
    assert torch.equal(*restored)


def test_a_layer_that_reads_nothing_but_zeros_is_rounded_to_the_nearest() -> None:
    weight = matrix(64, 128)
    nearest, gptq = (
        schemes.encode(
            "x.weight", weight, options("symmetric", rounding=rounding), None,
            [torch.zeros(1, 3, 128)],
        )
        for rounding in ("nearest", "gptq")
    )  # fmt: skip
    assert torch.equal(nearest.tensors["x._weight_qdata"], gptq.tensors["x._weight_qdata"])


def test_inputs_are_the_same_however_many_layers_are_recorded_at_once(
    tiny_base, tmp_path, monkeypatch
) -> None:
    rows, chosen = [[1, 2, 3], [4, 5]], options("symmetric", rounding="gptq")
    with layer_inputs(tiny_base, tmp_path, rows, chosen) as inputs:
        at_once = dict(inputs)
        assert len(inputs.recorded) == len(inputs) == len(at_once)
        monkeypatch.setattr("loradag.quantization.calibration.INPUT_BYTES", 4 * 5 * 64 * 3)
        for layer in inputs:
            inputs.recorded = {}
            assert all(map(torch.equal, inputs[layer], at_once[layer]))
            assert len(inputs.recorded) in (1, 2, 3)
    assert not list(tmp_path.iterdir())
