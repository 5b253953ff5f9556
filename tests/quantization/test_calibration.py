import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchao.quantization import Int8Tensor

from loradag.config.problems import LoradagError
from loradag.data.calibration_rows import read_calibration_rows
from loradag.quantization import affine
from loradag.quantization.calibration import Observer, choose_qparams
from tests.quantization.options import options, weights


def inputs(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, 50, 128, generator=generator) + 0.7
    values[..., 9] *= 8  # an outlier channel, as language models have
    return values


def observed(chosen, *shown):
    observer = Observer(chosen)
    for values in shown:
        observer.observe(values)
    return observer.range()


def test_minmax_spans_every_row():
    low, high = observed(options("static_w8a8"), inputs(0), inputs(1))
    both = torch.cat([inputs(0), inputs(1)])
    assert (low.item(), high.item()) == (both.min().item(), both.max().item())


def test_percentile_is_the_mean_over_rows():
    chosen = options("static_w8a8", observer="percentile", percentile=99.0)
    low, high = observed(chosen, inputs(0), inputs(1))
    for found, rank in ((low, 1), (high, 99)):
        expected = np.mean([np.percentile(inputs(seed).numpy(), rank) for seed in (0, 1)])
        assert found.item() == pytest.approx(expected, abs=0.02)


def test_channels_have_ranges_of_their_own():
    low, high = observed(options("static_w8a8", activation_granularity="channel"), inputs())
    assert torch.equal(high, inputs().amax((0, 1)))
    assert torch.equal(low, inputs().amin((0, 1)))


@pytest.mark.parametrize("zero_point", [True, False])
def test_qparams_follow_the_formula(zero_point):
    chosen = options("static_w8a8", activation_zero_point=zero_point)
    low, high = observed(chosen, inputs())
    qparams = choose_qparams(low, high, chosen)
    lowest, highest = low.item(), high.item()
    if zero_point:
        scale = (highest - lowest) / 255
        assert qparams.zero_point.item() == -128 - round(lowest / scale)
    else:
        scale = max(-lowest, highest) / 127
        assert qparams.zero_point is None
    assert qparams.scale.item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("zero_point", [True, False])
def test_the_layer_computes_what_the_formula_says(granularity, zero_point):
    """Σ s_x·(q_x − z_x)·s_w·q_w in float64, with activations rounded by hand."""
    chosen = options(
        "static_w8a8",
        activation_granularity=granularity,
        activation_zero_point=zero_point and granularity == "tensor",
    )
    x, weight = inputs(), weights("normal")
    qparams = choose_qparams(*observed(chosen, x), chosen)
    quantized = affine.quantize_for_integers(weight, chosen, qparams)
    assert isinstance(quantized, Int8Tensor)
    got = torch.nn.functional.linear(x, quantized)
    smoothing = 1 if qparams.smoothing_scale is None else qparams.smoothing_scale.double()
    shift = 0 if qparams.zero_point is None else qparams.zero_point.double()
    scale = qparams.scale.double()
    codes = ((x.double() / smoothing / scale).round() + shift).clamp(-128, 127)
    products = (scale * (codes - shift)) @ (quantized.scale * quantized.qdata).double().T
    assert torch.allclose(got.double(), products, atol=2e-3)
    exact = x @ weight.T
    assert (got - exact).norm() / exact.norm() < 0.05


def test_no_calibration_rows(tmp_path):
    table = pa.table({"input_ids": pa.array([], pa.list_(pa.int32()))})
    pq.write_table(table, tmp_path / "calibration.parquet")
    with pytest.raises(LoradagError, match="no calibration rows"):
        read_calibration_rows(tmp_path / "calibration.parquet", 8, "quantize.scheme = static_w8a8")
