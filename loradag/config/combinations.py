"""The rules that concern more than one key."""

import re
from collections.abc import Iterable
from pathlib import Path

from loradag.config.export import is_mixed, listed
from loradag.config.inputs import INPUT_KEYS, derive_inputs, own_inputs
from loradag.config.launch import ENGINES
from loradag.config.model import Model
from loradag.config.prepare import Prepare
from loradag.config.problems import Problem
from loradag.config.quantize import Quantize
from loradag.config.rules import field_names
from loradag.config.sections import Config

# The paths that stages write.
OUTPUTS = ("artifacts", "data/prepared", "data/source.json", "plots", "reports")
QAT_ADAPTERS = ("none", "lora", "rslora", "pissa")


def check_combinations(config: Config) -> Iterable[Problem]:
    """Every broken rule that concerns more than one key."""
    yield from _model_rules(config.model)
    yield from _prepare_rules(config)
    yield from _quantize_rules(config.quantize)
    yield from _method_rules(config)
    yield from _train_rules(config)
    yield from _launch_rules(config)
    yield from _general_rules(config)
    yield from _inputs_rules(config)
    yield from _export_rules(config)
    if config.evaluate.stride >= config.evaluate.window:
        yield Problem(
            "evaluate.stride", config.evaluate.stride,
            f"must be below evaluate.window = {config.evaluate.window}, or it skips tokens",
            "Lower evaluate.stride.",
        )  # fmt: skip


def _export_rules(config: Config) -> Iterable[Problem]:
    if is_mixed(config.export):
        yield from _mixed_type_rules(config)
    formats = listed(config.export.formats)
    adapter, method = config.adapter, config.train.method
    for name in ("adapter", "gguf_adapter"):
        if name in formats and (adapter.variant == "none" or method == "qat"):
            yield Problem(
                "export.formats", config.export.formats,
                f"cannot contain {name}, because adapter.variant = {adapter.variant} with "
                f"train.method = {method} gives a full model",
                "Export safetensors or gguf.",
            )  # fmt: skip
    if "compressed" in formats and method == "bitnet":
        yield Problem(
            "export.formats", config.export.formats,
            "cannot contain compressed, which would round the ternary weights of "
            "train.method = bitnet a second time",
            "Export safetensors, or gguf with export.type=tq2_0.",
        )  # fmt: skip
    if "adapter" in formats:
        yield from _peft_adapter_rules(config)
    if "gguf_adapter" in formats:
        yield from _gguf_adapter_rules(config)


def _peft_adapter_rules(config: Config) -> Iterable[Problem]:
    quantize = config.quantize
    if quantize.scheme not in ("none", "nf4", "fp4", "int8"):
        yield Problem(
            "export.formats", config.export.formats,
            "cannot contain adapter, because its users load the base by transformers, which cannot "
            f"quantize it by quantize.scheme = {quantize.scheme}",
            "Export safetensors or gguf with merge.base=dequantized, or take quantize=nf4.",
        )  # fmt: skip
    if quantize.scheme in ("nf4", "fp4") and quantize.block_size != 64:
        yield Problem(
            "export.formats", config.export.formats,
            "cannot contain adapter, because its users load the base by BitsAndBytesConfig, in "
            f"blocks of 64, not of quantize.block_size = {quantize.block_size}",
            "Set quantize.block_size=64, or export safetensors or gguf.",
        )  # fmt: skip


def _gguf_adapter_rules(config: Config) -> Iterable[Problem]:
    """llama.cpp only adds scale·B·A to matrices of the full-precision base."""
    adapter = config.adapter
    reasons = {
        "dora": "scales each row of W + scale·B·A",
        "loftq": "has learned the error of its quantized base, which the base's GGUF does not have",
    }
    for key, value, reason in (
        ("adapter.variant", adapter.variant, reasons.get(adapter.variant)),
        ("adapter.bias", adapter.bias, "also trains biases"),
        ("adapter.modules_to_save", adapter.modules_to_save, "also trains full matrices"),
    ):
        if reason and value not in (None, "none"):
            yield Problem(
                key, value,
                f"{reason}, and a LoRA file of llama.cpp holds only low-rank updates of the base",
                "Export adapter or gguf instead of gguf_adapter, or take adapter=lora.",
            )  # fmt: skip


def _mixed_type_rules(config: Config) -> Iterable[Problem]:
    if config.prepare.calibration_fraction == 0:
        yield Problem(
            "export.type", config.export.type,
            "rounds by the importance of columns, which is measured on calibration rows, and "
            "prepare.calibration_fraction = 0 leaves none",
            "Raise prepare.calibration_fraction, or export another type such as q8_0.",
        )  # fmt: skip
    if config.train.method == "bitnet":
        yield Problem(
            "export.type", config.export.type,
            "has no exact codes for the ternary weights of train.method = bitnet",
            "Set export.type=tq2_0, or a float type.",
        )  # fmt: skip


def _model_rules(model: Model) -> Iterable[Problem]:
    needed = {"package": "id", "hub": "id", "local": "path"}.get(model.source)
    if needed and getattr(model, needed) is None:
        rule = f"is needed by model.source = {model.source}"
        yield Problem(f"model.{needed}", None, rule, f"Set model.{needed}.")
    if model.source == "random" and "model_type" not in model.config:
        rule = "needs model_type for model.source = random"
        yield Problem("model.config", model.config, rule, "See conf/model/tiny.yaml.")


def _prepare_rules(config: Config) -> Iterable[Problem]:
    prepare, model = config.prepare, config.model
    yield from _source_rules(prepare)
    if prepare.eval_fraction + prepare.calibration_fraction >= 1:
        yield Problem(
            "prepare.eval_fraction", prepare.eval_fraction,
            f"with prepare.calibration_fraction = {prepare.calibration_fraction} "
            "leaves no rows to train on",
            "Lower one of them.",
        )  # fmt: skip
    for key, tokens in (
        ("prepare.max_tokens", prepare.max_tokens),
        ("evaluate.window", config.evaluate.window),
        ("train.packing_tokens", config.train.packing_tokens),
    ):
        if model.context is not None and tokens > model.context:
            yield Problem(
                key, tokens, f"is larger than the model's context, model.context = {model.context}",
                f"Lower {key} to {model.context} or less.",
            )  # fmt: skip
    if prepare.template == "rendered" and {config.train.loss, config.evaluate.loss} != {"full"}:
        yield Problem(
            "prepare.template", "rendered",
            "has no boundary between prompt and completion, so train.loss and evaluate.loss "
            "cannot be completion or assistant",
            "Set both to full.",
        )  # fmt: skip


def _source_rules(prepare: Prepare) -> Iterable[Problem]:
    for source, name in {"hub": "id", "file": "path", "mix": "mix"}.items():
        value = getattr(prepare, name)
        if source == prepare.source and value is None:
            rule = f"is needed by prepare.source = {source}"
            yield Problem(f"prepare.{name}", None, rule, f"Set prepare.{name}.")
        if source != prepare.source and value is not None:
            rule = f"is not read by prepare.source = {prepare.source}"
            remedy = f"Take prepare={source}, or set prepare.{name}=null."
            yield Problem(f"prepare.{name}", value, rule, remedy)
    if prepare.eval_split is not None and prepare.source != "hub":
        yield Problem(
            "prepare.eval_split", prepare.eval_split,
            f"names a split of a hub data set, but prepare.source = {prepare.source}",
            "Set prepare.eval_path to a file, or prepare=hub.",
        )  # fmt: skip
    if prepare.eval_split is not None and prepare.eval_path is not None:
        yield Problem(
            "prepare.eval_split", prepare.eval_split,
            "and prepare.eval_path both name the held-out rows", "Set one of them to null.",
        )  # fmt: skip
    if prepare.template == "rendered" and prepare.format not in ("text", "prompt_completion"):
        yield Problem(
            "prepare.template", "rendered",
            f"is for full texts, which prepare.format = {prepare.format} does not have",
            "Set prepare.format=text.",
        )  # fmt: skip
    if prepare.template == "plain" and prepare.format in ("messages", "sharegpt"):
        yield Problem(
            "prepare.template", "plain",
            f"has no turns, of which rows of prepare.format = {prepare.format} consist",
            "Set prepare.template=chat.",
        )  # fmt: skip
    yield from _format_rules(prepare)
    if prepare.max_characters is not None and prepare.min_characters > prepare.max_characters:
        yield Problem(
            "prepare.min_characters", prepare.min_characters,
            f"is above prepare.max_characters = {prepare.max_characters}, so no row is kept",
            "Lower prepare.min_characters.",
        )  # fmt: skip


def _format_rules(prepare: Prepare) -> Iterable[Problem]:
    if prepare.template == "chat" and prepare.format == "text":
        yield Problem(
            "prepare.template", "chat", "needs turns, which prepare.format = text does not have",
            "Set prepare.template=plain, or rendered for texts with their special tokens in them.",
        )  # fmt: skip
    for name in ("prompt", "completion"):
        value = getattr(prepare, name)
        if value is not None and prepare.format in ("messages", "sharegpt", "alpaca"):
            yield Problem(
                f"prepare.{name}", value, f"is not read by prepare.format = {prepare.format}",
                f"Set prepare.format=prompt_completion, or prepare.{name}=null.",
            )  # fmt: skip
    if prepare.prompt is not None and prepare.completion is not None and not _names_field(prepare):
        yield Problem(
            "prepare.completion", prepare.completion,
            "and prepare.prompt name no field of a row", "Write {field} in one of them.",
        )  # fmt: skip


def _names_field(prepare: Prepare) -> bool:
    """Whether the format strings name a field; an invalid one breaks its own rule."""
    try:
        return bool(field_names(f"{prepare.prompt}{prepare.completion}"))
    except ValueError:
        return True


def _train_rules(config: Config) -> Iterable[Problem]:
    train = config.train
    if train.checkpoint_steps % train.logging_steps:
        yield Problem(
            "train.checkpoint_steps", train.checkpoint_steps,
            f"must be a multiple of train.logging_steps = {train.logging_steps}, or a resumed "
            "training would log other losses",
            "Change one of them.",
        )  # fmt: skip
    if train.early_stopping.patience is not None and train.eval_steps is None:
        yield Problem(
            "train.early_stopping.patience", train.early_stopping.patience,
            "counts evaluations, but train.eval_steps = null evaluates only the last step",
            "Set train.eval_steps.",
        )  # fmt: skip
    if train.keep == "best" and train.checkpoint_steps != train.eval_steps:
        yield Problem(
            "train.keep", "best",
            f"needs a checkpoint of each evaluation, and train.checkpoint_steps = "
            f"{train.checkpoint_steps} is not train.eval_steps = {train.eval_steps}",
            "Set both to the same number.",
        )  # fmt: skip
    if train.packing and train.packing_tokens < config.prepare.max_tokens:
        yield Problem(
            "train.packing_tokens", train.packing_tokens,
            f"is less than prepare.max_tokens = {config.prepare.max_tokens}, so packing would cut "
            "rows",
            "Raise it to prepare.max_tokens or more.",
        )  # fmt: skip


def _launch_rules(config: Config) -> Iterable[Problem]:
    launch, train = config.launch, config.train
    if (launch.strategy == "single") != (launch.processes == 1):
        yield Problem(
            "launch.processes", launch.processes,
            f"does not fit launch.strategy = {launch.strategy}: single has one process, "
            "every other strategy two or more",
            "Take launch=ddp, fsdp or deepspeed for several processes, and launch=single for one.",
        )  # fmt: skip
    if launch.processes % launch.machines:
        yield Problem(
            "launch.processes", launch.processes,
            f"does not divide into launch.machines = {launch.machines} equal parts",
            "It counts the processes of all machines: use a multiple of launch.machines.",
        )  # fmt: skip
    if train.batch_size * train.gradient_accumulation % launch.processes:
        yield Problem(
            "launch.processes", launch.processes,
            "does not divide the rows of an optimizer step, train.batch_size * "
            "train.gradient_accumulation = "
            f"{train.batch_size} * {train.gradient_accumulation}",
            "Make the product, which counts the rows of all processes, a multiple of "
            "launch.processes.",
        )  # fmt: skip
    if (launch.sharding is None) == (launch.strategy in ENGINES):
        yield Problem(
            "launch.sharding", launch.sharding,
            "must be set for launch.strategy = fsdp or deepspeed, and null for others; it is "
            f"{launch.strategy}",
            "Take launch=fsdp or launch=deepspeed, or set launch.sharding=null.",
        )  # fmt: skip
    if launch.strategy in ENGINES:
        yield from _sharding_rules(config)
    if launch.offload and launch.strategy not in ENGINES:
        yield Problem(
            "launch.offload", True,
            f"moves sharded weights to the CPU; launch.strategy = {launch.strategy} shards none",
            "Take launch=fsdp or launch=deepspeed, or set launch.offload=false.",
        )  # fmt: skip


def _sharding_rules(config: Config) -> Iterable[Problem]:
    strategy, quantize, train = config.launch.strategy, config.quantize, config.train
    if quantize.scheme not in ("none", "nf4", "fp4"):
        yield Problem(
            "launch.strategy", strategy,
            f"cannot shard the weights of quantize.scheme = {quantize.scheme}",
            "Take quantize=nf4, fp4 or none, or launch=ddp.",
        )  # fmt: skip
    if strategy == "fsdp" and train.optimizer not in ("adamw_torch", "sgd"):
        yield Problem(
            "train.optimizer", train.optimizer,
            "cannot update the sharded parameters of launch.strategy = fsdp",
            "Set train.optimizer=adamw_torch, or take launch=ddp.",
        )  # fmt: skip


def _general_rules(config: Config) -> Iterable[Problem]:
    general = config.evaluate.general
    if general.source == config.prepare.source and general.source in ("glosses", "quotes"):
        yield Problem(
            "evaluate.general.source", general.source,
            f"is what is tuned on, prepare.source = {config.prepare.source}, so it measures no "
            "forgetting",
            "Choose another source, or none.",
        )  # fmt: skip
    for source, name in (("hub", "id"), ("hub", "split"), ("file", "path")):
        if general.source == source and getattr(general, name) is None:
            rule = f"is needed by evaluate.general.source = {source}"
            yield Problem(f"evaluate.general.{name}", None, rule, f"Set evaluate.general.{name}.")
    if general.source == "hub" and not re.fullmatch("[0-9a-f]{40}", general.revision or ""):
        yield Problem(
            "evaluate.general.revision", general.revision,
            "must be a commit, or the text would change from one run to the next",
            "Set it to the full hash of a commit of the data set.",
        )  # fmt: skip


def _inputs_rules(config: Config) -> Iterable[Problem]:
    for name, path in own_inputs(config).items():
        place = Path(path).resolve()
        outputs = [Path(path).resolve() for path in OUTPUTS]
        if any(place.is_relative_to(other) or other.is_relative_to(place) for other in outputs):
            yield Problem(
                INPUT_KEYS[name], path,
                f"overlaps with a path that the pipeline writes to ({', '.join(OUTPUTS)})",
                "Put the files into another folder, and name that.",
            )  # fmt: skip
    for name, path in derive_inputs(config).items():
        value = getattr(config.inputs, name)
        if value != path:
            yield Problem(
                f"inputs.{name}", value,
                f"must be {path!r}, as the other sections imply, or DVC would miss changes there",
                f"Set inputs.{name} to {path}, or compose params.yaml anew with `python -m conf`.",
            )  # fmt: skip


def _quantize_rules(quantize: Quantize) -> Iterable[Problem]:
    options: dict[str, tuple[str, ...]] = {
        "nf4": ("double_quant", "block_size"),
        "fp4": ("double_quant", "block_size"),
        "int8": ("threshold",),
        "symmetric": ("bits", "granularity", "symmetric_range", "rounding"),
        "asymmetric": ("bits", "granularity", "rounding"),
        "dynamic_w8a8": ("granularity",),
        "static_w8a8": (
            "granularity", "observer", "activation_granularity", "activation_zero_point",
            "calibration_rows",
        ),
    }  # fmt: skip
    needed = options.get(quantize.scheme, ())
    if quantize.granularity == "group":
        needed += ("group_size",)
    if quantize.is_rounded_by_inputs and "rounding" in needed:
        needed += ("calibration_rows",)
    if quantize.observer == "percentile":
        needed += ("percentile",)
    for name in needed:
        if getattr(quantize, name) is None:
            rule = f"is needed by quantize.scheme = {quantize.scheme}"
            remedy = f"Set quantize.{name}, or take conf/quantize/{quantize.scheme}.yaml."
            yield Problem(f"quantize.{name}", None, rule, remedy)
    if quantize.scheme in ("dynamic_w8a8", "static_w8a8") and quantize.granularity == "group":
        yield Problem(
            "quantize.granularity", "group",
            f"gives a row several scales, but quantize.scheme = {quantize.scheme} sums integer "
            "products over whole rows",
            "Choose tensor or channel.",
        )  # fmt: skip
    if quantize.rounding is not None and quantize.scheme not in ("symmetric", "asymmetric"):
        yield Problem(
            "quantize.rounding", quantize.rounding,
            f"is not read by quantize.scheme = {quantize.scheme}",
            "Set quantize.rounding=null, or take quantize=symmetric or asymmetric.",
        )  # fmt: skip
    elif quantize.rounding == "awq" and quantize.granularity != "group":
        yield Problem(
            "quantize.rounding", "awq",
            "scales columns within groups of a row, and quantize.granularity = "
            f"{quantize.granularity} has no groups",
            "Set quantize.granularity=group and quantize.group_size, or quantize.rounding=nearest.",
        )  # fmt: skip
    if quantize.activation_granularity == "channel" and quantize.activation_zero_point:
        yield Problem(
            "quantize.activation_zero_point", True,
            "needs one scale per tensor; quantize.activation_granularity = channel multiplies its "
            "scales into the weights, which cannot hold zero points",
            "Set quantize.activation_zero_point=false, or quantize.activation_granularity=tensor.",
        )  # fmt: skip


def _method_rules(config: Config) -> Iterable[Problem]:
    adapter, quantize = config.adapter, config.quantize
    if adapter.variant == "none":
        if quantize.scheme != "none":
            yield Problem(
                "adapter.variant", "none",
                f"trains every weight, but quantize.scheme = {quantize.scheme} freezes them",
                "Set quantize=none, or choose an adapter such as lora.",
            )  # fmt: skip
    else:
        for name in ("r", "alpha", "dropout", "bias", "target_modules"):
            if getattr(adapter, name) is None:
                rule = f"is needed by adapter.variant = {adapter.variant}"
                yield Problem(f"adapter.{name}", None, rule, f"Set adapter.{name}.")
    if (adapter.bits is None) == (adapter.variant == "quantized_lora"):
        yield Problem(
            "adapter.bits", adapter.bits,
            "must be set for adapter.variant = quantized_lora, and null for others; the variant is "
            f"{adapter.variant}",
            "Take adapter=quantized_lora, or set adapter.bits=null.",
        )  # fmt: skip
    if adapter.start is not None and adapter.variant in ("none", "pissa", "loftq"):
        yield Problem(
            "adapter.start", adapter.start,
            f"cannot be combined with adapter.variant = {adapter.variant}, which has its own start",
            "Set adapter.start=null, or adapter=lora (with adapter.r twice as large for an adapter "
            "that pissa has trained).",
        )  # fmt: skip
    if adapter.variant == "pissa" and quantize.scheme != "none":
        yield Problem(
            "adapter.variant", "pissa",
            "starts from singular vectors of full-precision weights, so it cannot be combined with "
            f"quantize.scheme = {quantize.scheme}",
            "Set quantize=none, or choose loftq, which starts from the quantization error.",
        )  # fmt: skip
    if adapter.variant == "loftq":
        if quantize.scheme != "nf4":
            yield Problem(
                "adapter.variant", "loftq",
                "starts from the quantization error of an nf4 base, so it cannot be combined with "
                f"quantize.scheme = {quantize.scheme}",
                "Set quantize=nf4.",
            )  # fmt: skip
        if config.merge.base != "dequantized":
            yield Problem(
                "merge.base", config.merge.base,
                "would add the quantization error twice, because adapter.variant = loftq has "
                "learned it",
                "Set merge.base=dequantized.",
            )  # fmt: skip
    yield from _qat_and_bitnet_rules(config)


def _qat_and_bitnet_rules(config: Config) -> Iterable[Problem]:
    """Rules of qat and bitnet, and of the keys that only they read."""
    adapter, quantize, train = config.adapter, config.quantize, config.train
    reads = {
        "qat": ("weight_bits", "group_size", "activation_bits"),
        "bitnet": ("activation_bits",),
    }.get(train.method, ())
    for name in ("weight_bits", "group_size", "activation_bits"):
        value = getattr(train, name)
        if value is not None and name not in reads:
            rule = f"is not read by train.method = {train.method}"
            remedy = f"Set train.{name}=null, or take train=qat."
            yield Problem(f"train.{name}", value, rule, remedy)
        optional = name == "activation_bits" and train.method == "qat"
        if value is None and name in reads and not optional:
            rule = f"is needed by train.method = {train.method}"
            remedy = f"Set train.{name}, or take conf/train/{train.method}.yaml."
            yield Problem(f"train.{name}", None, rule, remedy)
    if train.method == "bitnet" and (adapter.variant, quantize.scheme) != ("none", "none"):
        yield Problem(
            "train.method", "bitnet",
            "trains ternary weights from full-precision ones, so it cannot be combined with "
            f"adapter.variant = {adapter.variant} and quantize.scheme = {quantize.scheme}",
            "Set adapter=none quantize=none.",
        )  # fmt: skip
    if train.method == "qat":
        if quantize.scheme != "none":
            yield Problem(
                "train.method", "qat",
                "quantizes the weights itself, so it cannot be combined with "
                f"quantize.scheme = {quantize.scheme}",
                "Set quantize=none.",
            )  # fmt: skip
        if adapter.variant not in QAT_ADAPTERS:
            yield Problem(
                "adapter.variant", adapter.variant,
                "has no effective weight W + scale·B·A, which train.method = qat quantizes",
                f"Choose {', '.join(QAT_ADAPTERS)}.",
            )  # fmt: skip
        if adapter.modules_to_save:
            yield Problem(
                "adapter.modules_to_save", adapter.modules_to_save,
                "would train whole modules without the quantization of train.method = qat",
                "Set adapter.modules_to_save=null, or adapter=none.",
            )  # fmt: skip
