"""nf4, fp4 and LLM.int8, through bitsandbytes, in the form that its layers save and load.

nf4, fp4: blocks of `block_size` weights share a scale, max|w| of the block; a code is the nearest
of the 16 values of a codebook, two codes to a byte. With `double_quant` the scales are stored in 8
bits (blocks of 256) around their mean. [QLoRA, arXiv:2305.14314]

int8: code = round(127·w / max|w|) by row. At run time, activations past `threshold` stay in 16
bits. [LLM.int8, arXiv:2208.07339]
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loradag.config.problems import LoradagError

if TYPE_CHECKING:
    import torch

    from loradag.config.quantize import Quantize

STATE = ".quant_state.bitsandbytes__"
LARGEST = 65504.0  # of float16, which LLM.int8 quantises from


def config(quantize: Quantize, skipped: list[str]) -> Any:
    """The quantization section of `config.json`, by which transformers builds the layers."""
    from transformers import BitsAndBytesConfig

    if quantize.scheme == "int8":
        return BitsAndBytesConfig(
            load_in_8bit=True,
            llm_int8_threshold=quantize.threshold,
            llm_int8_skip_modules=skipped,
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantize.scheme,
        bnb_4bit_use_double_quant=quantize.double_quant,
        llm_int8_skip_modules=skipped,
    )


def encode(name: str, weight: torch.Tensor, quantize: Quantize) -> dict[str, torch.Tensor]:
    """The saved tensors of the linear weight `name` (out, in)."""
    import torch
    from bitsandbytes.functional import quantize_4bit
    from bitsandbytes.nn import Int8Params

    if quantize.scheme == "int8":
        if weight.abs().max() > LARGEST:
            raise LoradagError(
                f"quantize.scheme = int8: {name} has weights beyond the range of float16, which "
                "LLM.int8 quantises from. Set quantize=symmetric."
            )
        codes = Int8Params(weight, requires_grad=False, has_fp16_weights=False).to(weight.device)
        module = name.removesuffix("weight")
        row_major = torch.tensor(0, dtype=torch.uint8)
        return {name: codes.data, f"{module}SCB": codes.SCB, f"{module}weight_format": row_major}
    codes, state = quantize_4bit(
        weight,
        blocksize=quantize.block_size,
        compress_statistics=quantize.double_quant,
        quant_type=quantize.scheme,
    )
    stored = {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    return {name: codes, **stored}


def decode(name: str, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """The float32 weight (out, in) of the saved tensors of `name`."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    codes = stored[name]
    if scales := [value for key, value in stored.items() if key.endswith(".SCB")]:
        return codes.float() * (scales[0].float() / 127).unsqueeze(1)
    state = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key != name}
    weight: torch.Tensor = dequantize_4bit(codes, QuantState.from_dict(state, codes.device))
    return weight.float()


def codebook(
    name: str, stored: dict[str, torch.Tensor], restored: torch.Tensor, quantize: Quantize
) -> torch.Tensor:
    """The values that weights of the first block are rounded to: codebook times largest weight."""
    import torch

    if quantize.scheme == "int8":
        return torch.arange(-127, 128) / 127 * restored[0].abs().max().cpu()
    largest = restored.flatten()[: quantize.block_size].abs().max()
    return (stored[f"{name}.quant_map"] * largest).sort().values
