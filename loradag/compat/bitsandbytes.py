"""What bitsandbytes' layers take from the checkpoint instead of from the model that holds them."""

import logging
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit


def compute_in(model: Any, dtype: torch.dtype) -> None:
    """Make the 4-bit layers of a loaded `model` dequantise to `dtype` and multiply in it.

    Why: a layer that was loaded quantised dequantises to the dtype that it was quantised from. On
    a CPU with AVX512-bf16 it also packs its weights anew at the first evaluation, with its scales
    rounded to bfloat16, and multiplies in bfloat16 whatever its inputs are.
    Versions: bitsandbytes 0.50; `compute_dtype`, `compute_type_is_set`, `quant_state.dtype` and
    `support_avx512bf16_for_cpu` are attributes without documentation.
    Unnecessary once transformers passes `dtype` on to layers that it loads quantised, and the
    packing follows the dtype.
    """
    # LLM.int8 warns at each product that it rounds its inputs, which is what it is for.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.compute_dtype = module.weight.quant_state.dtype = dtype
            module.compute_type_is_set = True
            module.support_avx512bf16_for_cpu = False


def store_as(model: Any, dtype: torch.dtype) -> None:
    """Keep the codes of the 4-bit layers of `model` as numbers of a float `dtype`: the same bits.

    Why: FSDP divides tensors of a float dtype alone, so codes in bytes would be on every device in
    full. peft and bitsandbytes document the storage dtype as an option of quantising; what it does
    is this view, which needs no other checkpoint.
    Versions: bitsandbytes 0.50, transformers 5.23; `quant_storage` and `hf_quantizer` are
    attributes without documentation.
    Unnecessary once FSDP divides bytes.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            weight = module.weight
            weight.data = weight.data.flatten().view(dtype).unsqueeze(1)
            weight.quant_storage = module.quant_storage = dtype
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.quantization_config.bnb_4bit_quant_storage = dtype
