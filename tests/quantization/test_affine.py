import itertools
import math

import numpy as np
import pytest
import torch

from loradag.quantization import affine, schemes
from loradag.quantization.errors import compare
from tests.quantization.options import options, weights

KINDS = ("normal", "skewed", "constant", "zero", "huge", "tiny", "outlier")
GRANULARITIES = {"tensor": None, "channel": None, "group": 32}
SMALLEST = np.finfo(np.float32).smallest_normal  # the scale of blocks of zeros


def quantize(scheme, weight, **changes):
    return affine.quantize_weight(weight, options(scheme, **changes))


def sqnr(scheme, weight, **changes):
    stored = schemes.encode("x.weight", weight, options(scheme, **changes))
    return compare(weight, schemes.decode("x.weight", stored.tensors, stored.metadata)).sqnr_db


def blocks(array, granularity, group_size):
    """One block a row."""
    if granularity == "tensor":
        return array.reshape(1, -1)
    return array if granularity == "channel" else array.reshape(-1, group_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric", "minmax"])
def test_codes_and_scales_follow_the_formula(kind, granularity, bits, scheme):
    weight, size = weights(kind), GRANULARITIES[granularity]
    changes = {"bits": bits, "granularity": granularity, "group_size": size}
    if scheme == "minmax":
        got = quantize("symmetric", weight, symmetric_range="minmax", **changes)
    else:
        got = quantize(scheme, weight, **changes)
    w = blocks(weight.double().numpy(), granularity, size)
    low, high = w.min(1, keepdims=True).clip(max=0), w.max(1, keepdims=True).clip(min=0)
    top = 2 ** (bits - 1) - 1
    if scheme == "symmetric":
        s, z, bottom = np.abs(w).max(1, keepdims=True) / top, 0.0, -top
    else:
        s, z, bottom = (high - low) / (2**bits - 1), 0.0, -top - 1
    s = np.maximum(s, SMALLEST)
    if scheme == "asymmetric":
        z = np.clip(bottom - np.rint(low / s), bottom, top)
    exact = w / s + z
    codes = np.clip(np.rint(exact), bottom, top)
    ties = np.abs(exact - np.floor(exact) - 0.5) < 1e-3  # float32 may round these either way
    got_codes = blocks(got.qdata.numpy(), granularity, size)
    np.testing.assert_allclose(got.scale.numpy().reshape(s.shape), s, rtol=1e-6)
    np.testing.assert_array_equal(
        got.zero_point.numpy().reshape(-1), np.broadcast_to(z, s.shape).ravel()
    )
    np.testing.assert_array_equal(got_codes[~ties], codes[~ties])
    assert np.abs(got_codes - codes).max() <= 1
    restored = blocks(got.dequantize().numpy(), granularity, size)
    np.testing.assert_allclose(restored, s * (got_codes - z), rtol=1e-5, atol=0)


def test_each_bit_gains_what_its_levels_gain():
    found = [sqnr("symmetric", weights("normal"), bits=bits) for bits in range(3, 9)]
    for bits, (fewer, more) in enumerate(itertools.pairwise(found), start=3):
        gain = 20 * math.log10((2**bits - 1) / (2 ** (bits - 1) - 1))  # towards 6.02 dB
        assert more - fewer == pytest.approx(gain, abs=0.5), bits


def test_asymmetric_gains_a_bit_on_skewed_weights_and_nothing_on_symmetric_ones():
    skewed, normal = weights("skewed"), weights("normal")
    mirrored = torch.cat([normal, -normal], dim=1)
    even = {"bits": 8, "granularity": "channel", "group_size": None}
    assert sqnr("asymmetric", skewed, **even) - sqnr("symmetric", skewed, **even) > 5.5
    assert abs(sqnr("asymmetric", mirrored, **even) - sqnr("symmetric", mirrored, **even)) < 0.2


def test_finer_granularity_loses_less():
    found = [
        sqnr("symmetric", weights("outlier"), bits=4, granularity=granularity, group_size=size)
        for granularity, size in GRANULARITIES.items()
    ]
    assert found == sorted(found), found


def test_the_guides_range_clips():
    """A range as wide as max − min but centred on 0 misses the longer side by half of max + min."""
    weight = weights("normal")
    restored = quantize("symmetric", weight, bits=8, symmetric_range="minmax").dequantize()
    low, high = weight.amin(1), weight.amax(1)
    longer = high > -low
    missed = (high - restored.amax(1))[longer]
    step = ((high - low) / 255)[longer]
    assert ((missed - (high + low)[longer] / 2).abs() <= step).all()
    minmax = sqnr("symmetric", weight, bits=8, symmetric_range="minmax")
    assert sqnr("symmetric", weight, bits=8) - minmax > 6


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_integer_weights_are_the_symmetric_8_bit_ones(granularity):
    weight = weights("normal")
    expected = quantize("symmetric", weight, bits=8, granularity=granularity)
    got = affine.quantize_for_integers(
        weight, options("dynamic_w8a8", granularity=granularity), None
    )
    assert torch.equal(got.qdata, expected.qdata)
    assert torch.equal(got.scale, expected.scale)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [3, 4])
def test_awq_loses_less_where_inputs_are_large(scheme, bits):
    """Of ten times larger inputs in some columns, and of a weight with an outlier as well."""
    inputs = torch.randn(1, 200, 128, generator=torch.Generator().manual_seed(1))
    inputs[..., ::16] *= 10
    weight, changes = weights("normal"), {"granularity": "group", "group_size": 32}
    chosen = options(scheme, bits=bits, rounding="awq", **changes)
    first, second = (schemes.encode("x.weight", weight, chosen, None, [inputs]) for _ in range(2))
    assert all(torch.equal(first.tensors[key], second.tensors[key]) for key in first.tensors)
    fitted = schemes.decode("x.weight", first.tensors, first.metadata)
    nearest = quantize(scheme, weight, bits=bits, **changes).dequantize()
    loss = [((weight - restored) @ inputs[0].T).square().sum() for restored in (fitted, nearest)]
    assert loss[0] < 0.7 * loss[1]
    codes = first.tensors["x._weight_qdata"]
    assert -(2 ** (bits - 1)) <= codes.min()
    assert codes.max() < 2 ** (bits - 1)


def test_awq_is_nearest_rounding_where_all_inputs_are_alike():
    chosen = options("asymmetric", rounding="awq")
    stored = schemes.encode("x.weight", weights("normal"), chosen, None, [torch.ones(1, 4, 128)])
    restored = schemes.decode("x.weight", stored.tensors, stored.metadata)
    assert torch.equal(restored, quantize("asymmetric", weights("normal")).dequantize())


def test_packed_bits_are_told_apart_from_stored_ones():
    stored = schemes.encode("x.weight", weights("normal"), options("asymmetric"))
    count = weights("normal").numel()
    assert stored.bits == count * 8 + count // 32 * (32 + 8)
    assert stored.information_bits == count * 4 + count // 32 * (32 + 4)
    static = options("static_w8a8", activation_granularity="channel")
    rows, columns = weights("normal").shape
    assert affine.information_bits(weights("normal"), static) == count * 8 + 32 * (rows + columns)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_the_codebook_has_every_weight_of_the_first_block(scheme):
    stored = schemes.encode("x.weight", weights("normal"), options(scheme))
    restored = schemes.decode("x.weight", stored.tensors, stored.metadata)
    codebook = schemes.codebook("x.weight", stored, restored, options(scheme))
    distance = (restored[0, :32, None] - codebook).abs().amin(1)
    assert len(codebook) == (15 if scheme == "symmetric" else 16)
    assert distance.max() < 1e-7
