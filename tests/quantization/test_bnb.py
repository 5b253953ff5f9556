import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit

from loradag.config.problems import LoradagError
from loradag.quantization import schemes
from loradag.quantization.errors import compare
from tests.quantization.options import options, weights

# QLoRA, appendix E; and e2m1-like FP4 as bitsandbytes defines it.
NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
     -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
     0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0]
)  # fmt: skip
FP4 = np.array([0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0]) / 12
LEVELS = {"nf4": NF4, "fp4": np.concatenate([-FP4, FP4])}


def round_trip(weight, chosen):
    stored = schemes.encode("x.weight", weight, chosen)
    return schemes.decode("x.weight", stored.tensors, stored.metadata), stored


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("block_size", [32, 64, 128])
def test_weights_go_to_the_nearest_level_of_their_block(scheme, block_size):
    weight = weights("normal")
    restored, _ = round_trip(weight, options(scheme, double_quant=False, block_size=block_size))
    w = weight.double().numpy().reshape(-1, block_size)
    grid = np.abs(w).max(1)[:, None, None] * LEVELS[scheme]
    nearest = np.abs(w[:, :, None] - grid).min(2)
    got = np.abs(w - restored.double().numpy().reshape(w.shape))
    np.testing.assert_allclose(got, nearest, atol=2e-4 * np.abs(w).max())


@pytest.mark.parametrize("scheme", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [True, False])
def test_4_bit_equals_a_bitsandbytes_layer(scheme, double_quant):
    weight = weights("normal")
    layer = bnb.nn.Linear4bit(
        128, 48, bias=False, quant_type=scheme, compress_statistics=double_quant
    )
    layer.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, quant_type=scheme, compress_statistics=double_quant
    )
    layer.to("cpu")
    restored, stored = round_trip(weight, options(scheme, double_quant=double_quant))
    saved = {f"x.{key}": value for key, value in layer.state_dict().items()}
    assert saved.keys() == stored.tensors.keys()
    assert all(torch.equal(saved[key], stored.tensors[key]) for key in saved)
    assert torch.equal(restored, dequantize_4bit(layer.weight.data, layer.weight.quant_state))


def test_int8_follows_its_formula():
    weight = weights("outlier").half().float()  # LLM.int8 starts from float16
    restored, stored = round_trip(weight, options("int8"))
    w = weight.numpy()
    largest = np.abs(w).max(1, keepdims=True)
    codes = stored.tensors["x.weight"].numpy()
    assert np.abs(codes - 127 * w / largest).max() <= 0.5 + 0.07  # float16 holds 127·w to 1/16
    np.testing.assert_allclose(restored.numpy(), codes * largest / 127, rtol=1e-6)


def test_double_quantisation_saves_about_0_37_bits():
    weight = weights("normal", 512, 1024)
    count = weight.numel()
    plain, double = (
        round_trip(weight, options("nf4", double_quant=on))[1].bits / count for on in (False, True)
    )
    # 32/64 against 8/64 + 32/(64·256), beside a code book of 256 float32 for each matrix
    assert plain - double == pytest.approx(0.373, abs=8192 / count + 0.002)


def test_nf4_loses_least_on_normal_weights():
    """The ordering of the QLoRA paper, at the same block size."""
    weight = weights("normal", 256, 512)
    four_bits = {"granularity": "group", "group_size": 64, "bits": 4}
    found = {
        scheme: compare(weight, round_trip(weight, chosen)[0]).sqnr_db
        for scheme, chosen in {
            "nf4": options("nf4", double_quant=False),
            "fp4": options("fp4", double_quant=False),
            "symmetric": options("symmetric", **four_bits),
        }.items()
    }
    assert found["nf4"] > found["fp4"] + 1, found
    assert found["nf4"] > found["symmetric"] + 1, found


@pytest.mark.parametrize("scheme", ["nf4", "fp4", "int8"])
def test_the_codebook_has_every_weight_of_the_first_block(scheme):
    weight = weights("normal")
    restored, stored = round_trip(weight, options(scheme))
    codebook = schemes.codebook("x.weight", stored, restored, options(scheme))
    distance = (restored[0, :64, None] - codebook).abs().amin(1)
    assert distance.max() < 1e-6


def test_int8_refuses_what_float16_cannot_hold():
    with pytest.raises(LoradagError, match="beyond the range of float16"):
        schemes.encode("x.weight", weights("huge"), options("int8"))
