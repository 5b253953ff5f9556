"""A model that completes prompts, rendered as in its training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loradag.config.problems import LoradagError
from loradag.data.templates import chat_prompt, render_prompt
from loradag.data.token_contract import read_contract
from loradag.models.loading import load_base, load_model, load_quantized, load_tuned
from loradag.models.tokenizer import load_tokenizer
from loradag.runtime import Paths

if TYPE_CHECKING:
    import torch


class TextGenerator:
    """The transformers text-generation pipeline over one of a run's models."""

    def __init__(self, paths: Paths, model: str, dtype: torch.dtype) -> None:
        from transformers import pipeline

        load = {
            "tuned": lambda: load_tuned(paths, load_quantized(paths, dtype)),
            "merged": lambda: load_model(paths.merged, dtype),
            "base": lambda: load_base(paths, dtype),
        }
        if model not in load:
            raise LoradagError(f"model = {model!r}: choose {', '.join(load)}.")
        for needed in (paths.contract, paths.adapter if model == "tuned" else paths.base):
            if not needed.exists():
                raise LoradagError(f"{needed} is missing. Run `dvc repro` first.")
        self.template = read_contract(paths.contract).template
        self.tokenizer = load_tokenizer(paths.base)
        self.pipe = pipeline("text-generation", model=load[model](), tokenizer=self.tokenizer)

    def complete(self, prompt: str, **sampling: Any) -> str:
        """The rendered prompt and its completion."""
        text = render_prompt(self.template, prompt, self.tokenizer)
        completion = self._generate(text, **sampling)
        return text + completion if self.template.kind == "plain" else completion

    def answer(self, messages: list[dict[str, str]], **sampling: Any) -> str:
        """The model's turn after `messages`."""
        if self.tokenizer.chat_template is None:
            raise LoradagError("chat=true: the model's tokenizer has no chat template.")
        return self._generate(chat_prompt(messages, self.tokenizer), **sampling)

    def _generate(
        self, text: str, *, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> str:
        from transformers import set_seed

        set_seed(seed)
        sampled = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        opens = text.startswith(self.tokenizer.bos_token or "\0")
        generated = self.pipe(
            text,
            max_new_tokens=max_new_tokens,
            return_full_text=False,
            add_special_tokens=not opens,
            **(sampled if temperature > 0 else {"do_sample": False}),
        )
        return str(generated[0]["generated_text"])
