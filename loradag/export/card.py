"""The model card: data, base, method, numbers, licences, how to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradag.config.adapter import Adapter
from loradag.config.prepare import Prepare
from loradag.config.quantize import Quantize
from loradag.config.train import Train
from loradag.training.naming import method_name

HOW = {
    "safetensors": """```python
from transformers import pipeline

generate = pipeline("text-generation", model=".")
print(generate({prompt!r}, do_sample=False)[0]["generated_text"])
```

vLLM: `vllm serve .`""",
    "gguf": """```sh
llama-cli --model {file} --prompt {prompt!r} --no-conversation
ollama create tuned --file Modelfile && ollama run tuned
```""",
    "adapter": """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained(".")  # fetches the base that it names
tokenizer = AutoTokenizer.from_pretrained(".")
```""",
}


@dataclass(frozen=True)
class Origin:
    """What a model was made of."""

    base: dict[str, Any]  # the base's pin
    prepare: Prepare
    quantize: Quantize
    adapter: Adapter
    train: Train

    @property
    def name(self) -> str:
        """Of the tuned model: no path, no date, so that the same model has the same bytes."""
        base = str(self.base["id"] or self.base["source"]).split("/")[-1]
        return f"{base}-{self.method}"

    @property
    def method(self) -> str:
        return method_name(self.adapter, self.train)


def write_card(
    path: Path, kind: str, files: list[str], prompt: str, origin: Origin, numbers: dict[str, Any]
) -> None:
    """Write the card of the format `kind`; `numbers` are its proofs by name, one or several."""
    from huggingface_hub import ModelCardData

    base, data = origin.base, origin.prepare
    hub = base["source"] == "hub"
    front = ModelCardData(
        base_model=base["id"] if hub else None,
        datasets=data.id if data.source == "hub" else None,
        library_name={"safetensors": "transformers", "adapter": "peft"}.get(kind),
        license=base["license"],
        pipeline_tag="text-generation",
        tags=["loradag", origin.method],
    )
    table = "\n".join(
        f"| {name} | {found['perplexity']:.4f} | {found['merged_perplexity']:.4f} "
        f"| {found['greedy_match']:.0%} | {found['runtime']} |"
        for name, found in numbers.items()
    )
    sections = [
        f"---\n{front.to_yaml()}\n---\n\n# {origin.name}",
        f"## Base\n\n{base['id'] or base['source']}, revision {base['revision']}. "
        f"Licence: {base['license'] or 'not stated'}.",
        f"## Data\n\n{data.id or data.source}, rendered as `{data.template}`: prompt "
        f"`{data.prompt!r}`, completion `{data.completion!r}`. "
        f"Licence: {data.license or 'not stated'}.",
        f"## Method\n\n{_method(origin)}",
        "## Numbers\n\nPerplexity on held-out rows, and greedy text compared with the merged "
        "model's in transformers.\n\n| format | perplexity | merged model | greedy text agrees "
        f"| runtime |\n|---|---|---|---|---|\n{table}",
        f"## How to run\n\n{HOW[kind].format(file=files[0], prompt=prompt)}",
    ]
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _method(origin: Origin) -> str:
    adapter, train, quantize = origin.adapter, origin.train, origin.quantize
    length = f"{train.max_steps} steps" if train.max_steps else f"{train.epochs:g} epochs"
    rate = (
        f"{length} of {train.batch_size * train.gradient_accumulation} rows, learning rate "
        f"{train.learning_rate:g} ({train.scheduler}), {train.optimizer}."
    )
    if train.method == "qat":
        rate += f" Weights were rounded to {train.weight_bits} bits in training, as they are here."
    if adapter.variant == "none":
        return f"{train.method}, every weight trained: {rate}"
    base = "full precision" if quantize.scheme == "none" else quantize.scheme
    return (
        f"{adapter.variant} with r = {adapter.r}, alpha = {adapter.alpha:g} on "
        f"{adapter.target_modules}, on the frozen base in {base}: {rate} The adapter is merged "
        "into the weights of the other formats."
    )
