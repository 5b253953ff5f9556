"""Types and rules of every option. Values live in `conf/*.yaml`; no torch import here.

Hydra merges `conf/*.yaml` into `Config`, so an unknown key, a wrong type or an unknown option is
refused at composition. The rules (ranges, choices, combinations) are checked by `validate`, which
every stage calls on the whole of `params.yaml` before it does any work, and which reports all
problems at once.
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class LoradagError(Exception):
    """What a user can mend: the message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Problem:
    """One broken rule: `key` = `value`; the rule; the remedy."""

    key: str
    value: Any
    rule: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value!r}: {self.rule}. {self.remedy}"


class ConfigError(LoradagError):
    """Every problem of one configuration."""

    def __init__(self, problems: list[Problem], source: str = "params.yaml") -> None:
        self.problems = problems
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        super().__init__("\n".join([f"{source} has {count}:", *(f"  - {p}" for p in problems)]))


@dataclass(frozen=True)
class Rule:
    """What a value must satisfy, in words and as a predicate (never called with None)."""

    text: str
    holds: Callable[[Any], bool]
    remedy: str


def _ruled(rule: Rule) -> Any:
    return field(default=MISSING, metadata={"rule": rule})


def one_of(*options: str) -> Any:
    listed = ", ".join(options)
    return _ruled(Rule("must be one of the options", lambda v: v in options, f"Choose {listed}."))


def some_of(*options: str) -> Any:
    """One option, or a list of several."""

    def holds(value: Any) -> bool:
        values = [value] if isinstance(value, str) else value
        return isinstance(values, list) and bool(values) and set(values) <= set(options)

    listed = ", ".join(options)
    return _ruled(Rule("must be one or several of the options", holds, f"Choose from {listed}."))


def at_least(low: float) -> Any:
    return _ruled(Rule(f"must be at least {low}", lambda v: v >= low, f"Use {low} or more."))


def above(low: float) -> Any:
    return _ruled(Rule(f"must be above {low}", lambda v: v > low, f"Use a number above {low}."))


def between(low: float, high: float) -> Any:
    text = f"must be from {low} to {high}"
    return _ruled(Rule(text, lambda v: low <= v <= high, f"Use a number from {low} to {high}."))


def fraction() -> Any:
    text = "must be from 0 up to, not including, 1"
    return _ruled(Rule(text, lambda v: 0 <= v < 1, "Use a fraction such as 0.05."))


DTYPES = ("auto", "float32", "bfloat16", "float16")
GGUF_TYPES = (
    "f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "tq1_0", "tq2_0",
)  # fmt: skip
BNB_SCHEMES = ("nf4", "fp4", "int8")
QAT_ADAPTERS = ("none", "lora", "rslora", "pissa")
TORCHAO_SCHEMES = ("symmetric", "asymmetric", "dynamic_w8a8", "static_w8a8")


@dataclass
class Model:
    """The base model: where it comes from, and its shape."""

    source: str = one_of("package", "hub", "local", "random")
    id: str | None = MISSING  # Python package, or hub repository
    revision: str | None = MISSING  # hub branch, tag or commit; fetch pins it to a commit
    path: str | None = MISSING  # local: a folder of transformers' layout
    context: int | None = at_least(8)  # tokens; fetch holds the model to it
    pad_token: str | None = MISSING  # for tokenizers without one, or whose pad is their EOS
    license: str | None = MISSING  # for the model card
    # `random`: the transformers config to make weights from. Else: the shape that `plan` reckons
    # with before the model is here; fetch holds the model to it.
    config: dict[str, Any] = MISSING
    seed: int = at_least(0)  # random: of the weights


@dataclass
class Prepare:
    """Rows in, token ids out: source, filter, split, template."""

    source: str = one_of("quotes", "glosses", "hub", "file")
    id: str | None = MISSING  # hub dataset
    revision: str | None = MISSING
    path: str | None = MISSING  # file: .jsonl, .json, .csv, .parquet or .txt
    split: str = MISSING
    license: str | None = MISSING  # for the model card
    # plain: prompt + completion + EOS; chat: both as turns of the tokenizer's chat template;
    # rendered: the completion is a whole text with its special tokens, never rendered again.
    template: str = one_of("plain", "chat", "rendered")
    prompt: str = MISSING  # format string over the row's fields
    completion: str = MISSING  # format string over the row's fields
    unique: list[str] = MISSING  # fields whose normalised text must not recur
    min_characters: int = at_least(0)
    max_characters: int | None = at_least(1)
    max_rows: int | None = at_least(1)  # after filter and dedupe; a sample by content hash
    max_tokens: int = at_least(8)
    overlong: str = one_of("drop", "truncate")
    eval_fraction: float = fraction()
    calibration_fraction: float = fraction()
    golden: list[str] = MISSING  # texts whose ids every tokenizer downstream is held to


@dataclass
class Quantize:
    """How the frozen base is stored. Null where a scheme has no such option."""

    scheme: str = one_of("none", *BNB_SCHEMES, *TORCHAO_SCHEMES)
    double_quant: bool | None = MISSING  # nf4, fp4: quantise the block scales as well
    block_size: int | None = _ruled(
        Rule("must be 32, 64, 128, 256, 512, 1024, 2048 or 4096",
             lambda v: v in (32, 64, 128, 256, 512, 1024, 2048, 4096), "Use 64, QLoRA's choice.")
    )  # fmt: skip
    threshold: float | None = at_least(0)  # int8: activations beyond it stay in 16 bits
    bits: int | None = between(2, 8)
    granularity: str | None = one_of("tensor", "channel", "group")
    group_size: int | None = at_least(2)
    symmetric_range: str | None = one_of("absmax", "minmax")  # minmax: the guide's, which clips
    observer: str | None = one_of("minmax", "percentile")  # static_w8a8
    percentile: float | None = between(50, 100)
    activation_granularity: str | None = one_of("tensor", "channel")
    activation_zero_point: bool | None = MISSING  # static_w8a8: asymmetric activations
    calibration_rows: int | None = at_least(1)  # at most; the report says how many there were
    # What dvc.yaml makes the stage depend on: static scales come from the calibration rows; no
    # other scheme shall rerun because the data changed.
    reads: str = one_of("artifacts/base", "data/prepared/calibration.parquet")
    skip_modules: list[str] = MISSING  # kept at full precision


@dataclass
class Adapter:
    """The trained update: its form, rank and place."""

    variant: str = one_of("none", "lora", "rslora", "dora", "pissa", "loftq", "quantized_lora")
    r: int | None = between(1, 4096)
    alpha: float | None = above(0)  # scale is alpha/r (rslora: alpha/sqrt(r))
    dropout: float | None = fraction()
    bias: str | None = one_of("none", "all", "lora_only")
    target_modules: Any = MISSING  # "all-linear", or a list of module names
    modules_to_save: list[str] | None = MISSING  # trained whole beside the adapter
    bits: int | None = between(2, 8)  # quantized_lora


@dataclass
class Train:
    """The optimisation."""

    method: str = one_of("sft", "qat", "bitnet")
    loss: str = one_of("full", "completion")
    packing: bool = MISSING  # several short rows in one, none seeing another
    packing_tokens: int = at_least(8)  # tokens a packed row
    learning_rate: float = above(0)
    scheduler: str = one_of(
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    )
    warmup_steps: int = at_least(0)  # optimizer steps
    max_steps: int | None = at_least(1)  # optimizer steps; null: `epochs` decides
    epochs: float = above(0)
    batch_size: int = at_least(1)  # rows a device a forward pass
    gradient_accumulation: int = at_least(1)  # forward passes an optimizer step
    gradient_checkpointing: bool = MISSING
    optimizer: str = one_of(
        "adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adafactor", "sgd"
    )
    weight_decay: float = at_least(0)
    max_grad_norm: float = at_least(0)
    dtype: str = one_of(*DTYPES)  # auto: what the device computes natively
    logging_steps: int = at_least(1)  # optimizer steps
    checkpoint_steps: int = at_least(1)  # optimizer steps
    weight_bits: int | None = between(2, 8)  # qat: fake-quantised weights
    group_size: int | None = at_least(2)  # qat
    activation_bits: int | None = between(8, 8)  # qat, bitnet: fake-quantised activations


@dataclass
class Evaluate:
    """Perplexity over held-out tokens, and greedy samples."""

    window: int = at_least(2)  # tokens
    stride: int = at_least(1)  # tokens
    batch_tokens: int = at_least(1)  # tokens a forward pass, padding included
    loss: str = one_of("full", "completion")
    samples: int = at_least(0)  # prompts
    max_new_tokens: int = at_least(1)
    dtype: str = one_of(*DTYPES)


@dataclass
class Tolerance:
    """Past it the merge fails. KL is a mean over tokens, in nats."""

    rounding: float = above(0)  # KL to the same base with the adapter beside it
    kl: float = above(0)  # KL to the model as trained, on its quantised base
    perplexity: float = above(0)  # relative rise over the model as trained


@dataclass
class Merge:
    """Adapter into base."""

    base: str = one_of("original", "dequantized")
    dtype: str = one_of(*DTYPES)  # of the merged weights; auto: the base's
    rows: int = at_least(1)  # held-out rows that the parity is measured on
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    tolerance: Tolerance = field(default_factory=Tolerance)


@dataclass
class Export:
    """The files that runtimes load."""

    formats: Any = some_of("safetensors", "gguf", "adapter")
    type: Any = some_of(*GGUF_TYPES)  # gguf: one, or a list of several
    max_shard_size: str = MISSING  # safetensors, e.g. 5GB
    rows: int = at_least(1)  # held-out rows that the runtimes are measured on
    max_new_tokens: int = at_least(1)  # of the greedy continuations
    tolerance: float = above(0)  # relative change of perplexity, beyond the format's own loss
    register: str | None = MISSING  # MLflow model name


@dataclass
class Runtime:
    """What cannot change an output; no stage declares it."""

    threads: int | None = at_least(1)  # null: the cores there are
    device: str = one_of("auto", "cpu", "cuda", "mps")


@dataclass
class Sweep:
    """What becomes of a sweep's workspaces."""

    keep: str = one_of("all", "failed", "none")


@dataclass
class Config:
    """`params.yaml`: one section a stage or shared noun."""

    model: Model = field(default_factory=Model)
    prepare: Prepare = field(default_factory=Prepare)
    quantize: Quantize = field(default_factory=Quantize)
    adapter: Adapter = field(default_factory=Adapter)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    merge: Merge = field(default_factory=Merge)
    export: Export = field(default_factory=Export)
    seed: int = at_least(0)  # of the adapter's start, dropout and the order of rows
    runtime: Runtime = field(default_factory=Runtime)
    sweep: Sweep = field(default_factory=Sweep)
    checked: bool = MISSING  # composing this key checks the rules


def method_name(adapter: Adapter, train: Train) -> str:
    """What the two make together: `lora`, `qat`, `qat_lora`; `sft` where neither says more."""
    said = [name for name in (train.method, adapter.variant) if name not in ("sft", "none")]
    return "_".join(said) or "sft"


def load_config(path: Path) -> Config:
    """Read and validate a `params.yaml`.

    Raises:
        ConfigError: with every problem of the file.
    """
    if not path.exists():
        remedy = "Run in the project's root, or compose it with `python -m conf`."
        raise ConfigError([Problem(str(path), None, "is not there", remedy)])
    try:
        raw = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # YAML and interpolation errors share no base class
        first_line = str(error).splitlines()[0]
        remedy = "Mend the line, or compose the file anew with `python -m conf`."
        raise ConfigError([Problem(str(path), first_line, "is not valid YAML", remedy)]) from error
    return validate(raw)


def validate(raw: Any, source: str = "params.yaml") -> Config:
    """Check a composed config, as plain containers, against types, rules and combinations.

    Raises:
        ConfigError: with every problem found.
    """
    malformed: list[Problem] = []
    unruly: list[Problem] = []
    config: Config = _read(Config, raw, "", malformed, unruly)
    if not malformed:
        unruly += _combinations(config)
    if problems := malformed + unruly:
        raise ConfigError(problems, source)
    return config


def _read(cls: type, raw: Any, prefix: str, malformed: list[Problem], unruly: list[Problem]) -> Any:
    """Build `cls` field by field through OmegaConf's own conversion, gathering the problems.

    Beyond `malformed` keys no combination can be checked; with `unruly` values it still can.
    """
    if not isinstance(raw, dict):
        malformed.append(
            Problem(prefix.rstrip(".") or "the file", raw, "must be a section of keys",
                    "Compose it anew with `python -m conf`.")
        )  # fmt: skip
        return None
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in raw.keys() - fields.keys():
        close = difflib.get_close_matches(str(key), fields, n=1)
        remedy = f"Did you mean {prefix}{close[0]}?" if close else f"Known: {', '.join(fields)}."
        malformed.append(Problem(f"{prefix}{key}", raw[key], "is not a known key", remedy))
    values: dict[str, Any] = {}
    typed = OmegaConf.structured(cls)
    for name, spec in fields.items():
        key = f"{prefix}{name}"
        if raw.get(name, MISSING) == MISSING:
            remedy = f"Set {key} to a value."
            malformed.append(Problem(key, MISSING, "is missing", remedy))
        elif isinstance(spec.type, type) and dataclasses.is_dataclass(spec.type):
            values[name] = _read(spec.type, raw[name], f"{key}.", malformed, unruly)
        else:
            values[name] = _convert(typed, spec, key, raw[name], malformed)
            rule: Rule | None = spec.metadata.get("rule")
            if rule and values[name] is not None and not rule.holds(values[name]):
                unruly.append(Problem(key, values[name], rule.text, rule.remedy))
    return cls(**values)


def _convert(
    typed: DictConfig, spec: dataclasses.Field[Any], key: str, value: Any, malformed: list[Problem]
) -> Any:
    try:
        typed[spec.name] = value
        converted = typed[spec.name]
        is_node = OmegaConf.is_config(converted)
        return OmegaConf.to_container(converted) if is_node else converted
    except OmegaConfBaseException:
        kind = (
            spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", spec.type)
        )
        remedy = f"Give it a value of type {kind}."
        malformed.append(Problem(key, value, "has the wrong type", remedy))
        return None


def _combinations(config: Config) -> Iterable[Problem]:
    """Rules over more than one key."""
    yield from _model_rules(config.model)
    yield from _prepare_rules(config)
    yield from _quantize_rules(config.quantize)
    yield from _method_rules(config)
    yield from _train_rules(config)
    whole = config.adapter.variant == "none" or config.train.method == "qat"
    if whole and "adapter" in config.export.formats:
        yield Problem(
            "export.formats", config.export.formats,
            f"cannot hold adapter, for adapter.variant = {config.adapter.variant} with "
            f"train.method = {config.train.method} makes a whole model",
            "Export safetensors or gguf.",
        )  # fmt: skip
    if config.evaluate.stride > config.evaluate.window:
        yield Problem(
            "evaluate.stride", config.evaluate.stride,
            f"must not exceed evaluate.window = {config.evaluate.window}, or tokens go unscored",
            "Lower evaluate.stride.",
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
    needed = {"hub": "id", "file": "path"}.get(prepare.source)
    if needed and getattr(prepare, needed) is None:
        rule = f"is needed by prepare.source = {prepare.source}"
        yield Problem(f"prepare.{needed}", None, rule, f"Set prepare.{needed}.")
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
    if prepare.template == "rendered" and "completion" in (
        config.train.loss, config.evaluate.loss,
    ):  # fmt: skip
        yield Problem(
            "prepare.template", "rendered",
            "has no boundary between prompt and completion, so train.loss and evaluate.loss "
            "cannot be completion",
            "Set both to full.",
        )  # fmt: skip


def _train_rules(config: Config) -> Iterable[Problem]:
    train = config.train
    if train.checkpoint_steps % train.logging_steps:
        yield Problem(
            "train.checkpoint_steps", train.checkpoint_steps,
            f"must be a multiple of train.logging_steps = {train.logging_steps}, or a resumed "
            "training would log another loss",
            "Change one of them.",
        )  # fmt: skip
    if train.packing and train.packing_tokens < config.prepare.max_tokens:
        yield Problem(
            "train.packing_tokens", train.packing_tokens,
            f"is less than prepare.max_tokens = {config.prepare.max_tokens}, so packing would cut "
            "rows",
            "Raise it to prepare.max_tokens or more.",
        )  # fmt: skip


def _quantize_rules(quantize: Quantize) -> Iterable[Problem]:
    options: dict[str, tuple[str, ...]] = {
        "nf4": ("double_quant", "block_size"),
        "fp4": ("double_quant", "block_size"),
        "int8": ("threshold",),
        "symmetric": ("bits", "granularity", "symmetric_range"),
        "asymmetric": ("bits", "granularity"),
        "dynamic_w8a8": ("granularity",),
        "static_w8a8": (
            "granularity", "observer", "activation_granularity", "activation_zero_point",
            "calibration_rows",
        ),
    }  # fmt: skip
    needed = options.get(quantize.scheme, ())
    if quantize.granularity == "group":
        needed += ("group_size",)
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
            f"gives a row several scales, but quantize.scheme = {quantize.scheme} multiplies "
            "integers along whole rows",
            "Choose tensor or channel.",
        )  # fmt: skip
    if quantize.activation_granularity == "channel" and quantize.activation_zero_point:
        yield Problem(
            "quantize.activation_zero_point", True,
            "goes with one scale a tensor; quantize.activation_granularity = channel folds its "
            "scales into the weights, which leaves no place for zero points",
            "Set quantize.activation_zero_point=false, or quantize.activation_granularity=tensor.",
        )  # fmt: skip
    calibrates = quantize.scheme == "static_w8a8"
    if calibrates != (quantize.reads == "data/prepared/calibration.parquet"):
        yield Problem(
            "quantize.reads", quantize.reads,
            f"does not go with quantize.scheme = {quantize.scheme}",
            f"Take conf/quantize/{quantize.scheme}.yaml.",
        )  # fmt: skip


def _method_rules(config: Config) -> Iterable[Problem]:
    adapter, quantize = config.adapter, config.quantize
    if adapter.variant == "none":
        if quantize.scheme != "none":
            yield Problem(
                "adapter.variant", "none",
                f"trains every weight, which quantize.scheme = {quantize.scheme} has frozen",
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
            "is for adapter.variant = quantized_lora, and needed by it; the variant is "
            f"{adapter.variant}",
            "Take adapter=quantized_lora, or set adapter.bits=null.",
        )  # fmt: skip
    if adapter.variant == "pissa" and quantize.scheme != "none":
        yield Problem(
            "adapter.variant", "pissa",
            "takes its start out of the full-precision weights, so it cannot stand on "
            f"quantize.scheme = {quantize.scheme}",
            "Set quantize=none, or choose loftq, which starts at the quantisation's error.",
        )  # fmt: skip
    if adapter.variant == "loftq":
        if quantize.scheme != "nf4":
            yield Problem(
                "adapter.variant", "loftq",
                "starts at the error of a 4-bit base, so it cannot stand on "
                f"quantize.scheme = {quantize.scheme}",
                "Set quantize=nf4.",
            )  # fmt: skip
        if config.merge.base != "dequantized":
            yield Problem(
                "merge.base", config.merge.base,
                "would count the quantisation's error twice, for adapter.variant = loftq has "
                "learned it",
                "Set merge.base=dequantized.",
            )  # fmt: skip
    yield from _full_method_rules(config)


def _full_method_rules(config: Config) -> Iterable[Problem]:
    """Of qat and bitnet, which shape the weights themselves."""
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
            "trains ternary weights from full-precision masters, so it cannot be combined with "
            f"adapter.variant = {adapter.variant} and quantize.scheme = {quantize.scheme}",
            "Set adapter=none quantize=none.",
        )  # fmt: skip
    if train.method == "qat":
        if quantize.scheme != "none":
            yield Problem(
                "train.method", "qat",
                "learns the quantisation itself, so it cannot stand on "
                f"quantize.scheme = {quantize.scheme}",
                "Set quantize=none.",
            )  # fmt: skip
        if adapter.variant not in QAT_ADAPTERS:
            yield Problem(
                "adapter.variant", adapter.variant,
                "has no effective weight W + scale B A to quantise, as train.method = qat does",
                f"Choose {', '.join(QAT_ADAPTERS)}.",
            )  # fmt: skip
        if adapter.modules_to_save:
            yield Problem(
                "adapter.modules_to_save", adapter.modules_to_save,
                "would train whole modules past the quantisation of train.method = qat",
                "Set adapter.modules_to_save=null, or adapter=none.",
            )  # fmt: skip
