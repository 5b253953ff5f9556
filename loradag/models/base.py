"""Where a base comes from. Each source fills a folder and returns its pin.

A pinned folder has tokenizer, configs and `pin.json`: `source`, `id`, `revision`, `path`,
`license`, and of every weight file `bytes` and `sha256`. Weights themselves lie in the folder only
where the source has no local copy of its own to read them from.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from loradag.checkpoints.model_files import PIN, copy_all_but_weights, quantized_by
from loradag.checkpoints.safetensors_reader import weight_files
from loradag.config.model import Model
from loradag.config.problems import LoradagError
from loradag.models.pinning import HUB_FILES, sha256
from loradag.runtime.hub_errors import explain_hub_errors

CONFIG = "config.json"


def fetch_base(model: Model, folder: Path) -> dict[str, Any]:
    """Fill `folder` from `model.source` and return the pin that was written there.

    Raises:
        LoradagError: the model is gated, missing, not in safetensors or not what
            `model.config` and `model.context` describe.
    """
    folder.mkdir(parents=True)
    pin = {"source": model.source, "id": model.id, "path": model.path, "license": model.license}
    pin |= {
        "package": _from_package,
        "hub": _from_hub,
        "local": _from_folder,
        "random": _from_config,
    }[model.source](model, folder)
    _fix_padding(model, folder)
    _stop_at_eos(folder)
    _verify_config(model, folder)
    (folder / PIN).write_text(json.dumps(pin, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return pin


def _pin_files(folder: Path) -> dict[str, Any]:
    files = [folder / name for name in weight_files(folder)]
    return {file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def _from_package(model: Model, folder: Path) -> dict[str, Any]:
    """The embedded GGUF, dequantised once: loading it takes half a minute, safetensors a second."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from loradag.compat.gguf_loading import reading_gguf_once

    file = packaged_gguf(str(model.id))
    with reading_gguf_once():
        tokenizer = read_gguf_tokenizer(file)
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float16,
        )
    tokenizer.model_max_length = model.context
    tokenizer.save_pretrained(folder)
    loaded.save_pretrained(folder)
    package = importlib.metadata.packages_distributions()[str(model.id)][0]
    revision = f"{package}=={importlib.metadata.version(package)}"
    return {"revision": revision, "weights": _pin_files(folder)}


def packaged_gguf(package: str) -> Path:
    """The one GGUF file that a Python package carries.

    Raises:
        LoradagError: there is no such package, or not one such file in it.
    """
    # find_spec: importing the package itself would need the server that it was made for.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LoradagError(
            f"model.id = {package!r}: no such Python package here. `make setup` installs it."
        )
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if len(files) != 1:
        raise LoradagError(
            f"model.id = {package!r}: has {len(files)} .gguf files, but one is read. "
            "Name a package with one."
        )
    return files[0]


def read_gguf_tokenizer(file: Path) -> Any:
    """The tokenizer in SmolLM2's GGUF.

    It splits digits one by one; transformers does not know the rule by the name that the file
    gives it, and would lose it.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return tokenizer


def _from_hub(model: Model, folder: Path) -> dict[str, Any]:
    """Weights stay in the hub's own cache; the folder pins them to a commit."""
    from huggingface_hub import HfApi, snapshot_download

    repo, advice = str(model.id), "model=smollm2_135m, which needs none, or model=local"
    with explain_hub_errors("model", repo, model.revision, advice):
        info = HfApi().model_info(repo, revision=model.revision, files_metadata=True)
        config = snapshot_download(repo, revision=info.sha, allow_patterns=[CONFIG])
        _refuse_quantized(Path(config), f"model.id = {repo!r}")
        snapshot = Path(snapshot_download(repo, revision=info.sha, **HUB_FILES))
    copy_all_but_weights(snapshot, folder)
    weights = {
        file.rfilename: {"bytes": file.size, "sha256": file.lfs.sha256}
        for file in info.siblings or []
        if file.rfilename in weight_files(snapshot) and file.lfs
    }
    return {"revision": info.sha, "weights": _need_weights(weights, f"model.id = {repo!r}")}


def _from_folder(model: Model, folder: Path) -> dict[str, Any]:
    source = Path(str(model.path)).expanduser()
    if not (source / CONFIG).is_file():
        raise LoradagError(
            f"model.path = {model.path!r}: it has no config.json. Name a folder that "
            "`save_pretrained` wrote."
        )
    where = f"model.path = {model.path!r}"
    _refuse_quantized(source, where)
    copy_all_but_weights(source, folder)
    weights = _need_weights(_pin_files(source), where)
    digest = hashlib.sha256(json.dumps(weights, sort_keys=True).encode()).hexdigest()
    return {"revision": digest[:16], "weights": weights}


def _from_config(model: Model, folder: Path) -> dict[str, Any]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from loradag.models.random_tokenizer import train_tokenizer

    tokenizer = train_tokenizer(model.config.get("vocab_size", 1024), str(model.pad_token))
    tokenizer.model_max_length = model.context
    tokenizer.save_pretrained(folder)
    shape = {key: value for key, value in model.config.items() if key != "model_type"}
    tokens = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    from huggingface_hub.errors import StrictDataclassError

    try:
        config = AutoConfig.for_model(model.config["model_type"], **(tokens | shape))
        torch.manual_seed(model.seed)
        loaded = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise LoradagError(f"model.config: transformers refuses it: {error}") from error
    loaded.save_pretrained(folder)
    return {"revision": f"seed-{model.seed}", "weights": _pin_files(folder)}


def _refuse_quantized(folder: Path, where: str) -> None:
    """Codes are no weights: quantised again, merged or exported as such, they are noise."""
    file = folder / CONFIG
    method = quantized_by(folder) if file.is_file() else None
    if method is not None:
        raise LoradagError(
            f"{where}: is quantized already, by {method}. Name the model that it was made of; the "
            "section quantize chooses how it is quantized here."
        )


def _need_weights(weights: dict[str, Any], where: str) -> dict[str, Any]:
    if not weights:
        raise LoradagError(
            f"{where}: has no .safetensors weights, and pickled ones are never loaded. Convert it "
            "with `save_pretrained`."
        )
    return weights


def _fix_padding(model: Model, folder: Path) -> None:
    """Give the tokenizer a pad of its own: where pad is EOS, masking one masks the other."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if tokenizer.eos_token is None:
        raise LoradagError(
            "model: its tokenizer has no EOS token, so no text could ever end. Name one in "
            "tokenizer_config.json (eos_token), or choose another model."
        )
    if model.pad_token is None and tokenizer.pad_token not in (None, tokenizer.eos_token):
        return
    pad = model.pad_token or tokenizer.unk_token
    if pad is None or pad == tokenizer.eos_token or pad not in tokenizer.get_vocab():
        raise LoradagError(
            f"model.pad_token = {model.pad_token!r}: the tokenizer's pad is its EOS "
            f"({tokenizer.eos_token}), and this cannot take its place. Name another token of its "
            "vocabulary that no text contains."
        )
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)


def _stop_at_eos(folder: Path) -> None:
    """Let generation stop at the tokenizer's EOS, which ends every row of a training."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    eos = AutoTokenizer.from_pretrained(folder, local_files_only=True).eos_token_id
    file = folder / "generation_config.json"
    if file.exists():
        fields = json.loads(file.read_text(encoding="utf-8"))
    else:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        fields = GenerationConfig.from_model_config(config).to_diff_dict()
    stops = fields.get("eos_token_id")
    stops = stops if isinstance(stops, list) else [stops]
    if eos not in stops:
        fields.pop("_from_model_config", None)  # it would be derived anew
        fields["eos_token_id"] = [eos, *(id for id in stops if id is not None)]
        file.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _verify_config(model: Model, folder: Path) -> None:
    from transformers import AutoConfig

    actual = AutoConfig.from_pretrained(folder, local_files_only=True)
    wrong = [
        f"  - model.config.{key} = {value!r}, but the model has {getattr(actual, key, None)!r}"
        for key, value in sorted(model.config.items())
        if getattr(actual, key, None) != value
    ]
    longest = getattr(actual, "max_position_embeddings", None)
    if model.context and longest and model.context > longest:
        wrong.append(f"  - model.context = {model.context}, but the model has {longest}")
    if wrong:
        raise LoradagError("\n".join(["the model does not match its config:", *wrong]))
