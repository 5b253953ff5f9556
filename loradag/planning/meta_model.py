"""The shape of any causal language model of transformers, from its modules on the meta device.

A model on the meta device has shapes but no weights, so 671 billion parameters are counted in less
than a second; importing transformers takes several. peft itself counts the adapter's parameters,
which includes what it does with fused experts or transposed matrices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loradag.config.adapter import Adapter
from loradag.config.problems import LoradagError
from loradag.planning.shape import Linear, Shape
from loradag.training.experts import expert_matrices


def shape_on_meta(config: Mapping[str, Any]) -> Shape | None:
    """The shape of the model of a `config.json`; None: transformers has no such causal LM."""
    import torch
    from transformers.pytorch_utils import Conv1D

    model = _model(config)
    if model is None:
        return None
    text = model.config.get_text_config()
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    linears = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not output:
            inputs, outputs = module.weight.shape  # of a Conv1D
            if isinstance(module, torch.nn.Linear):
                outputs, inputs = module.weight.shape
            linears.append(Linear(name, inputs, outputs, module.bias is not None))
    names = {id(module): name for name, module in model.named_modules()}
    return Shape(
        parameters=model.num_parameters(),
        hidden=text.hidden_size,
        layers=text.num_hidden_layers,
        intermediate=_active_intermediate(text, linears),
        linears=tuple(linears),
        embedding=Linear(names[id(embedding)], *embedding.weight.shape),
        output=Linear(
            names[id(output)], output.in_features, output.out_features, output.bias is not None
        ),
        config=json.dumps(config),
        experts=sum(model.get_parameter(name).numel() for name in expert_matrices(model)),
    )


def count_on_meta(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> tuple[int, int, int]:
    """Parameters of the model with the adapter, as peft counts them.

    Args:
        config: the model's `config.json`.
        adapter: the section.

    Returns:
        Trainable parameters, all parameters, and those of adapted experts.

    Raises:
        LoradagError: peft cannot add the adapter to this model.
    """
    from peft import get_peft_model

    from loradag.training.lora import lora_config

    model = _model(config)
    chosen = lora_config(Adapter(**adapter), model)
    # PiSSA computes A and B from the weights, which are missing here. Their shapes are LoRA's.
    chosen.init_lora_weights = True
    experts = sum(model.get_parameter(name).numel() for name in chosen.target_parameters or ())
    try:
        tuned = get_peft_model(model, chosen)
    except ValueError as error:
        raise LoradagError(f"adapter: peft cannot add it to this model: {error}") from error
    trainable, total = tuned.get_nb_trainable_parameters()
    return int(trainable), int(total), experts


def _model(config: Mapping[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key != "model_type"}
    try:
        made = AutoConfig.for_model(config["model_type"], **values)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(made, trust_remote_code=False)
    except (KeyError, ValueError):
        return None


def _active_intermediate(text: Any, linears: list[Linear]) -> int:
    """Width of the feed-forward layer for a token; with experts, of all that it is routed to."""
    width = getattr(text, "intermediate_size", None) or max(linear.inputs for linear in linears)
    chosen = getattr(text, "num_experts_per_tok", None)
    if chosen:
        width = chosen * (getattr(text, "moe_intermediate_size", None) or width)
    return int(width)
