"""LoRA and its variants, through peft.

LoRA (https://arxiv.org/abs/2106.09685) learns an update of a frozen weight W of shape (out, in) as

    W' = W + scale * B A,    A of shape (r, in), B of shape (out, r), scale = alpha / r,

with B = 0 at the start, so that step 0 computes what W computes. The variants:

- rslora (https://arxiv.org/abs/2312.03732): scale = alpha / sqrt(r): high ranks still learn.
- dora (https://arxiv.org/abs/2402.09353): W' = m * (W + scale * B A) / |W + scale * B A|, the norm
  and the learned magnitude m a row.
- pissa (https://arxiv.org/abs/2404.02948): starts at the r largest singular components of W.
- loftq (https://arxiv.org/abs/2310.08659): starts at the error that quantising W made.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loradag.config.adapter import Adapter
from loradag.config.problems import LoradagError
from loradag.training.experts import expert_matrices, parent

INITIAL = "initial"


def lora_config(adapter: Adapter, model: Any) -> Any:
    """peft's configuration of `adapter` for `model`.

    Raises:
        LoradagError: the target modules are not in a model with experts, the adapter's form has no
            counterpart for experts, or a target is the output layer.
    """
    from peft import LoraConfig

    modules: str | list[str] = adapter.target_modules
    modules = modules if isinstance(modules, str) else sorted(modules)
    parameters = None
    if matrices := expert_matrices(model):
        modules, parameters = _targets(modules, model, matrices)
        _check_form(adapter, parameters)
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        bias=adapter.bias,
        target_modules=modules,
        target_parameters=parameters or None,
        modules_to_save=adapter.modules_to_save,
        use_rslora=adapter.variant == "rslora",
        use_dora=adapter.variant == "dora",
        init_lora_weights="pissa" if adapter.variant == "pissa" else True,
        task_type="CAUSAL_LM",
    )
    _check_output(config, model)
    return config


def _targets(
    asked: str | list[str], model: Any, matrices: list[str]
) -> tuple[list[str], list[str]]:
    """The modules and the parameters that `asked` means in a model with experts, by full names.

    Args:
        asked: `adapter.target_modules`.
        matrices: parameters that are matrices of experts; named by themselves or by their module.
    """
    import torch
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    from loradag.compat.peft import is_targeted, names_of_experts

    kinds = (torch.nn.Linear, torch.nn.Embedding, Conv1D)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    if asked == "all-linear":
        ends = (model.get_input_embeddings(), model.get_output_embeddings())
        modules = [name for name, module in layers.items() if module not in ends]
        parameters = list(matrices)
    else:
        modules, parameters = [], []
        for pattern in [asked] if isinstance(asked, str) else asked:
            config = LoraConfig(target_modules=asked if isinstance(asked, str) else [pattern])
            found = [name for name in layers if is_targeted(config, name)]
            inside = [
                name
                for name in matrices
                if is_targeted(config, name) or is_targeted(config, parent(name))
            ]
            if not found + inside:
                names = (name.removesuffix(".weight") for name in (*layers, *matrices))
                known = sorted({name.rpartition(".")[2] for name in names})
                raise LoradagError(
                    f"adapter.target_modules: {pattern!r} is neither a linear layer nor a matrix "
                    f"of experts of {type(model).__name__}, which has {', '.join(known)}."
                )
            modules += found
            parameters += inside
    misread = {name for name in modules if name.rpartition(".")[2] in names_of_experts()}
    parameters += [f"{name}.weight" for name in misread]
    return sorted(set(modules) - misread), list(dict.fromkeys(parameters))


def _check_form(adapter: Adapter, parameters: list[str]) -> None:
    """Refuse what peft cannot do to parameters."""
    if not parameters:
        return
    refused = {
        f"adapter.variant = {adapter.variant}": adapter.variant not in ("lora", "rslora"),
        f"adapter.dropout = {adapter.dropout}": bool(adapter.dropout),
    }
    for setting, is_refused in refused.items():
        if is_refused:
            raise LoradagError(
                f"{setting}: peft adapts {parameters[0]} as a parameter, as it does experts, not "
                "as a linear layer, and only by lora or rslora without dropout. Set adapter=lora "
                "adapter.dropout=0, or name other layers in adapter.target_modules, such as "
                "[q_proj,v_proj]."
            )


def _check_output(config: Any, model: Any) -> None:
    """Refuse an adapter of the output layer: trl computes the loss from the layer's own weight."""
    from loradag.compat.peft import is_targeted

    if config.target_modules == "all-linear":  # without the output layer
        return
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is output and is_targeted(config, name):
            raise LoradagError(
                f"adapter.target_modules: names {name}, and an adapter of the output layer is "
                "never trained: the loss is computed from the layer's own weight. Leave it out, or "
                f"set adapter.modules_to_save=[{name.rpartition('.')[2]}], which trains all of it."
            )


def add_adapter(
    model: Any,
    adapter: Adapter,
    weights: Path,
    state: Path,
    layers: dict[Any, Any] | None = None,
) -> Any:
    """`model` with an adapter on it, fresh or that of `adapter.start`; only it is trainable.

    Args:
        weights: folder of the base's full-precision weights; loftq starts from them.
        state: folder for what `save_adapter` needs of the start; pissa's initial A and B.
        layers: of a layer's class, the class that adapts it, where it is not peft's own.

    Raises:
        LoradagError: the target modules or the modules to save are not in the model, or the adapter
            of `adapter.start` is not of the form that `adapter` describes.
    """
    from peft import get_peft_model

    from loradag.compat.peft import register_layers

    names = {name for name, _ in model.named_modules()}
    for module in adapter.modules_to_save or []:
        if not any(name == module or name.endswith(f".{module}") for name in names):
            raise LoradagError(
                f"adapter.modules_to_save names {module!r}, and the model has no such module. "
                "Name one that it has, such as lm_head or embed_tokens, or set it to null."
            )
    config = lora_config(adapter, model)
    register_layers(config, layers or {})
    try:
        tuned = get_peft_model(model, config)
    except ValueError as error:
        raise LoradagError(
            f"adapter.target_modules = {adapter.target_modules!r}: {error} "
            'Use "all-linear", or names that the model has.'
        ) from error
    if adapter.start is not None:
        _continue_from(tuned, Path(adapter.start).expanduser())
    if adapter.variant == "loftq":
        _start_from_error(tuned, weights)
    if adapter.variant == "pissa":
        # peft reads the saved start as an ordinary adapter when it converts the result.
        tuned.peft_config["default"].init_lora_weights = True
        tuned.save_pretrained(state / INITIAL)
        tuned.peft_config["default"].init_lora_weights = "pissa"
    return tuned


def save_adapter(tuned: Any, folder: Path, state: Path, base: str) -> None:
    """Write the adapter as an update of the unchanged base, whatever it started from.

    pissa trains on W - B0 A0. Given its start, peft writes it as an update of W, of rank 2r.

    Args:
        state: the folder that `add_adapter` was given.
        base: what `adapter_config.json` names as the base.
    """
    options = {}
    if (state / INITIAL).exists():
        options["path_initial_model_for_weight_conversion"] = str(state / INITIAL)
    tuned.save_pretrained(folder, **options)
    (folder / "README.md").unlink(missing_ok=True)
    _sort_config(folder / "adapter_config.json", base)


def _continue_from(tuned: Any, folder: Path) -> None:
    """Load the adapter in `folder` into the fresh one of `tuned`, which must have its form."""
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise LoradagError(
            f"adapter.start = '{folder}': no adapter_model.safetensors there. Name a folder that "
            "holds an adapter, such as a copy of artifacts/adapter."
        )
    saved, config = LoraConfig.from_pretrained(folder), tuned.peft_config["default"]
    differing = [
        f"{key} = {getattr(saved, name)}, and adapter.{key} = {getattr(config, name)}"
        for key, name in (("r", "r"), ("alpha", "lora_alpha"), ("bias", "bias"))
        if getattr(saved, name) != getattr(config, name)
    ]
    differing += [
        f"{name} = {getattr(saved, name)}, and adapter.variant makes it {getattr(config, name)}"
        for name in ("use_rslora", "use_dora")
        if getattr(saved, name) != getattr(config, name)
    ]
    state = load_file(weights)
    names = state.keys() ^ get_peft_model_state_dict(tuned).keys()
    if names and not differing:
        differing.append(f"other layers: only one of the two has {min(names)}")
    if differing:
        raise LoradagError(
            f"adapter.start = '{folder}' has {'; '.join(differing)}. Set the section adapter to "
            "what it was trained with."
        )
    try:
        set_peft_model_state_dict(tuned, state)
    except RuntimeError as error:
        raise LoradagError(
            f"adapter.start = '{folder}' was trained on a model of another shape: {error}"
        ) from error


def _start_from_error(tuned: Any, weights: Path) -> None:
    """Set A and B so that scale * B A is the best rank-r part of W - dequantized(W), by its SVD.

    As peft's `replace_lora_weights_loftq`, but on any device, and divided by the scale.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    from loradag.checkpoints.safetensors_reader import read_entries, read_tensor
    from loradag.compat.peft import dequantized_weight

    stored = read_entries(weights)
    for name, module in tuned.named_modules():
        if not isinstance(module, LoraLayer) or "default" not in module.lora_A:
            continue
        key = f"{name.removeprefix('base_model.model.')}.weight"
        quantized = dequantized_weight(module.get_base_layer())
        error = read_tensor(weights / stored[key].file, key).to(quantized) - quantized
        u, s, vh = torch.linalg.svd(error / module.scaling["default"], full_matrices=False)
        root = s[: module.r["default"]].sqrt()
        start_a, start_b = root[:, None] * vh[: len(root)], u[:, : len(root)] * root
        for linear, start in ((module.lora_A, start_a), (module.lora_B, start_b)):
            linear["default"].weight.data = start.to(linear["default"].weight).contiguous()


def _sort_config(path: Path, base: str) -> None:
    """Make the config portable and the same bytes each time.

    peft records the path of the base, and writes sets in an order that changes from run to run.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    for key, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[key] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
