"""The model card: data, base, method, numbers, licences, how to run."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loradag.config.adapter import Adapter
from loradag.config.prepare import Prepare
from loradag.config.quantize import Quantize
from loradag.config.train import Train
from loradag.training.naming import method_name

LIBRARIES = {"safetensors": "transformers", "compressed": "transformers", "adapter": "peft"}
TEMPLATE = Path(__file__).with_name("card.jinja")
# The options of `BitsAndBytesConfig` that decide what a base is quantised to.
BASE_OPTIONS = (
    "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
    "llm_int8_threshold", "llm_int8_skip_modules",
)  # fmt: skip


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
    path: Path,
    kind: str,
    origin: Origin,
    numbers: dict[str, Any],
    *,
    file: str,
    prompt: str,
    quantization: dict[str, Any] | None,
) -> None:
    """Write the card of the format `kind`.

    Args:
        numbers: what the verification found, by the format's name, one or several.
        file: the first file that a runtime loads.
        prompt: for the examples, without the BOS that runtimes add.
        quantization: what quantises an adapter's base, options of `BitsAndBytesConfig`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base, data = origin.base, origin.prepare
    hub = base["source"] == "hub"
    front = ModelCardData(
        base_model=base["id"] if hub else None,
        datasets=_hub_datasets(data) or None,
        library_name=LIBRARIES.get(kind),
        license=base["license"],
        pipeline_tag="text-generation",
        tags=["loradag", origin.method],
    )
    found = next(iter(numbers.values()))
    variables = [f"`{name}`" for name in found.get("template_variables") or []]
    card = ModelCard.from_template(
        front,
        str(TEMPLATE),
        name=origin.name,
        base=base,
        hub=hub,
        sources=_sources(data),
        data=data,
        method=_method(origin),
        activation_bits=origin.train.activation_bits if found["rounds_activations"] is False else 0,
        tokens=found["tokens"],
        numbers=numbers,
        variables=" and ".join(variables),
        kind=kind,
        file=file,
        prompt=prompt,
        # llama.cpp reads \n and \\ in an argument.
        argument=shlex.quote(prompt.replace("\\", "\\\\").replace("\n", "\\n")),
        quantization=_arguments(quantization) if quantization and kind == "adapter" else None,
    )
    path.write_text(card.content.rstrip("\n") + "\n", encoding="utf-8")


def _hub_datasets(data: Prepare) -> list[str]:
    found = [data.id] if data.source == "hub" else [item.get("id") for item in data.mix or []]
    return list(dict.fromkeys(id for id in found if id))


def _sources(data: Prepare) -> str:
    """What the rows are of. Paths stay on the machine that has them."""

    def named(source: str | None, id: str | None, name: str | None = None) -> str:
        return id or name or ("local rows" if source in (None, "file") else source)

    if data.source != "mix":
        return named(data.source, data.id)
    return ", ".join(
        f"{named(item.get('source'), item.get('id'), item.get('name'))} "
        f"(weight {item.get('weight', 1):g})"
        for item in data.mix
    )


def _arguments(quantization: dict[str, Any]) -> str:
    """The options that matter, as arguments in Python."""
    chosen = {name: quantization.get(name) for name in BASE_OPTIONS}
    four_bits = bool(chosen["load_in_4bit"])
    return ", ".join(
        f"{name}={value!r}"
        for name, value in chosen.items()
        if value and (four_bits or "4bit" not in name) and not (four_bits and "threshold" in name)
    )


def _method(origin: Origin) -> str:
    adapter, train, quantize = origin.adapter, origin.train, origin.quantize
    rows = f"{train.batch_size * train.gradient_accumulation} rows"
    if train.packing:
        rows += f" packed to {train.packing_tokens} tokens"
    length = (
        f"{train.max_steps} steps of {rows}"
        if train.max_steps
        else f"{train.epochs:g} epochs in steps of {rows}"
    )
    rate = (
        f"{'at most ' if train.early_stopping.patience else ''}{length}, learning rate "
        f"{train.learning_rate:g} ({train.scheduler}), {train.optimizer}."
    )
    if train.keep == "best":
        rate += " Kept is the evaluated step with the lowest held-out loss."
    if train.method == "qat":
        rate += f" Weights were rounded to {train.weight_bits} bits in training."
    if adapter.variant == "none":
        return f"{train.method}, every weight trained: {rate}"
    base = "full precision" if quantize.scheme == "none" else quantize.scheme
    return (
        f"{adapter.variant} with r = {adapter.r}, alpha = {adapter.alpha:g} on "
        f"{adapter.target_modules}, on the frozen base in {base}: {rate} The adapter is merged "
        "into the weights of the other formats."
    )
