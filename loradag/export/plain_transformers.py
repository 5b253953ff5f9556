"""A model folder in transformers and peft, and in nothing of this project.

Run as a script in an empty folder, `python -I plain_transformers.py REQUEST.json`, it loads what
users would load and writes what it computes. It imports no other module of loradag, which it checks
at its end.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def load(request: dict[str, Any]) -> Any:
    """The model of `request["folder"]`; of an adapter, peft's model on `request["base"]`.

    Args:
        request: also `dtype`; `device_map`; where that is "auto", `max_memory` as pairs; and
            `quantization`: options of `BitsAndBytesConfig` that quantise the base, or None.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options, offload = {}, {}
    if request["device_map"] == "auto":
        offload = {"max_memory": dict(request["max_memory"]), "offload_folder": "offloaded"}
    if request["quantization"]:
        options["quantization_config"] = BitsAndBytesConfig.from_dict(request["quantization"])
    model = AutoModelForCausalLM.from_pretrained(
        request["base"] or request["folder"],
        dtype=getattr(torch, request["dtype"]),
        device_map=request["device_map"],
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        **options,
        **offload,
    )
    if getattr(model, "quantization_method", None) == "bitnet":
        # Its layers compile functions of three operations: a C++ compiler and half a minute.
        torch.compiler.set_stance("force_eager")
    if request["base"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["folder"])
    return model.eval()


def answer(model: Any, tokenizer: Any, inputs: dict[str, Any], logits: Path) -> dict[str, Any]:
    """Put a loaded model to `inputs` (see `measurement.Inputs`); its logits go to a folder."""
    openings = [
        tokenizer.apply_chat_template(dialogue, tokenize=False, add_generation_prompt=True)
        for dialogue in inputs["dialogues"]
    ]
    write_logits(model, inputs["rows"], logits)
    clock = _Clock()
    greedy = [_greedy(model, ids, inputs["max_new_tokens"], clock) for ids in inputs["prompts"]]
    stops = model.generation_config.eos_token_id
    return {
        "token_ids": [_encode(tokenizer, text) for text in inputs["texts"]],
        "openings": openings,
        "opening_ids": [_encode(tokenizer, opening) for opening in openings],
        "eos": tokenizer.eos_token_id,
        "stops": stops if isinstance(stops, list) else [stops] if stops is not None else [],
        "greedy": greedy,
        "tokens_per_second": clock.tokens / clock.seconds if clock.tokens else 0.0,
    }


def write_logits(model: Any, rows: list[list[int]], folder: Path) -> None:
    """(tokens, vocabulary) in float32 of each row by itself, a file a row."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for at, ids in enumerate(rows):
        with torch.inference_mode():
            output = model(input_ids=torch.tensor([ids], device=_input_device(model)))
        save_file({"logits": output.logits[0].float().cpu()}, folder / f"{at}.safetensors")


def _input_device(model: Any) -> Any:
    """accelerate takes the inputs of a model that is offloaded from anywhere."""
    return "cpu" if model.device.type == "meta" else model.device


def _encode(tokenizer: Any, text: str) -> list[int]:
    opens = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not opens)["input_ids"]
    return ids


class _Clock:
    """A streamer of `generate`: counts and times each token after a text's first."""

    def __init__(self) -> None:
        self.tokens, self.seconds = 0, 0.0
        self._received: list[float] = []  # when, of a text: the prompt, then token by token

    def put(self, _: Any) -> None:
        self._received.append(time.perf_counter())

    def end(self) -> None:
        _prompt, first, *others = self._received
        self.tokens += len(others)
        self.seconds += others[-1] - first if others else 0.0
        self._received = []


def _greedy(model: Any, ids: list[int], max_new_tokens: int, clock: _Clock) -> list[int]:
    import torch

    given = torch.tensor([ids], device=_input_device(model))
    with torch.inference_mode():
        generated = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False,
            temperature=None, top_p=None, top_k=None, max_new_tokens=max_new_tokens,
            streamer=clock,
        )  # fmt: skip
    following: list[int] = generated[0, len(ids) :].tolist()
    return following


def main() -> None:
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(request["folder"], local_files_only=True)
    answers = answer(load(request), tokenizer, request["inputs"], Path(request["logits"]))
    foreign = sorted(name for name in sys.modules if name.split(".")[0] == "loradag")
    assert not foreign, f"this project was imported: {foreign}"
    Path(request["answers"]).write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    main()
