import torch
from transformers import AutoConfig, BitNetQuantConfig

from loradag.compat.bit_linear import CODES_PER_BYTE, pack, ternary_layers
from loradag.models.loading import load_model


def test_every_linear_layer_but_the_output_layer_is_ternary(tiny_base):
    config = AutoConfig.from_pretrained(tiny_base)
    config.quantization_config = BitNetQuantConfig(
        linear_class="autobitlinear", quantization_mode="online"
    ).to_dict()
    model = load_model(tiny_base, torch.float32, config=config)
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert ternary_layers(model).keys() == linears - {"lm_head"}


def test_codes_are_packed_as_bits_of_bytes():
    codes = torch.randint(-1, 2, (8, 3), generator=torch.Generator().manual_seed(0))
    packed = pack(codes.float())
    assert (packed.dtype, packed.shape) == (torch.uint8, (8 // CODES_PER_BYTE, 3))
    # Row i of the bytes has the codes of the rows i, i + 2, i + 4 and i + 6.
    fields = [(packed >> (2 * i)) & 3 for i in range(CODES_PER_BYTE)]
    assert torch.equal(torch.cat(fields).to(torch.int64) - 1, codes)
