"""A tokenizer whose every token is a byte, so that masks can be written down by hand."""

from collections.abc import Callable
from typing import Any

import pytest

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def letters() -> Callable[..., Any]:
    """Call it with a chat template, special tokens, BOS and EOS."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    def make(
        chat_template: str | None = CHATML,
        special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>"),
        bos: str | None = None,
        eos: str = "<|im_end|>",
        adds_bos: bool = False,
    ) -> Any:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: at for at, letter in enumerate(alphabet)}
        backend = Tokenizer(models.BPE(vocab, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        named = dict.fromkeys([*special, *([bos] if bos else []), eos, "<pad>"])
        backend.add_special_tokens([AddedToken(token, special=True) for token in named])
        if adds_bos:
            backend.post_processor = TemplateProcessing(
                single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token="<pad>",
            clean_up_tokenization_spaces=False,
        )  # fmt: skip
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


def marked(tokenizer: Any, ids: list[int], mask: list[int]) -> str:
    """The tokens as text, with « and » around each run that the mask covers."""
    pieces, was = [], 0
    for id, now in zip([*ids, None], [*mask, 0], strict=True):
        if now != was:
            pieces.append("«" if now else "»")
        if id is not None:
            pieces.append(tokenizer.convert_ids_to_tokens(int(id)))
        was = now
    text = "".join(pieces)
    return text.replace("Ġ", " ").replace("Ċ", "\n")
