"""Which GGML type each matrix of a file type such as q4_k_m has.

K-quants have blocks of 256 weights in sub-blocks of 16 or 32, whose scales are codes themselves, of
4 to 8 bits; iq4_xs has blocks of 256, a scale for each 32, and codes that name 16 uneven values. A
file type mixes them: matrices that lose most by rounding get more bits. The choice is llama.cpp's
(`llama_tensor_get_type` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp),
without its exceptions for Falcon and for mixtures of experts:

    type     most    attn_v                 ffn_down               attn_output  output
    q3_k_m   q3_k    q5_k in 2 blocks, q4_k q5_k in 1/16, q4_k     q4_k         q6_k
    q4_k_m   q4_k    q6_k in about half     q6_k in about half     q4_k         q6_k
    q5_k_m   q5_k    q6_k in about half     q6_k in about half     q5_k         q6_k
    q6_k     q6_k    q6_k                   q6_k                   q6_k         q6_k
    iq4_xs   iq4_xs  q5_k if 4 heads share  iq4_xs                 iq4_xs       q6_k
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BASIC = {"q3_k_m": "q3_k", "q4_k_m": "q4_k", "q5_k_m": "q5_k", "q6_k": "q6_k", "iq4_xs": "iq4_xs"}
# The types with blocks of 32 that llama.cpp takes where rows are no multiple of 256.
FALLBACKS = {"q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl"}
SUPER_BLOCK, BLOCK = 256, 32


@dataclass(frozen=True)
class Mixture:
    """A file type on the shape of a model.

    Attributes:
        blocks: of the model; matrices in the first and last get more bits.
        shared: query heads that share a key and value head.
        tied: the embedding is the output matrix, too.
    """

    type: str
    blocks: int
    shared: int
    tied: bool

    def choose(self, name: str, columns: int) -> str:
        """GGML's type of the matrix `name` (llama.cpp's name of it), with rows of `columns`."""
        if name == "output.weight" or (self.tied and name == "token_embd.weight"):
            chosen = "q8_0" if columns % SUPER_BLOCK else "q6_k"
        else:
            chosen = self._in_block(name)
        if chosen in FALLBACKS and columns % SUPER_BLOCK:
            chosen = FALLBACKS[chosen]
        return "f16" if columns % BLOCK else chosen

    def _in_block(self, name: str) -> str:
        basic = BASIC[self.type]
        number = re.match(r"blk\.(\d+)\.", name)
        block = int(number[1]) if number else 0
        if re.search(r"\.attn_(v|qkv)\.", name):
            if self.type == "q3_k_m":
                basic = "q5_k" if block < 2 else "q4_k"
            elif self.type == "iq4_xs" and self.shared >= 4:
                basic = "q5_k"
            elif self._has_more_bits(block):
                basic = "q6_k"
            # A matrix that eight query heads share is small: more bits cost nearly nothing.
            return "q5_k" if self._is_70b() and basic in ("q3_k", "q4_k") else basic
        if ".ffn_down." in name:
            if self.type == "q3_k_m":
                return "q5_k" if block < self.blocks // 16 else "q4_k"
            return "q6_k" if self._has_more_bits(block) else basic
        if ".attn_output." in name and self.type == "q3_k_m":
            return "q4_k"
        return basic

    def _has_more_bits(self, block: int) -> bool:
        """The first and last eighth of the blocks, and every third between."""
        eighth = self.blocks // 8
        sensitive = block < eighth or block >= 7 * self.blocks // 8 or (block - eighth) % 3 == 2
        return self.type in ("q4_k_m", "q5_k_m") and sensitive

    def _is_70b(self) -> bool:
        return self.blocks == 80 and self.shared > 1


def read_mixture(model: Path, type: str) -> Mixture | None:
    """The mixture of the file type `type` on the model in the folder `model`; None: it is none."""
    if type not in BASIC:
        return None
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model, local_files_only=True)
    heads = config.num_attention_heads
    return Mixture(
        type,
        blocks=config.num_hidden_layers,
        shared=heads // (getattr(config, "num_key_value_heads", None) or heads),
        tied=config.tie_word_embeddings,
    )
