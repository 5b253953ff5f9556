"""A peft adapter as what it does to each weight of its base."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.config.problems import LoradagError

if TYPE_CHECKING:
    import torch

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
PARTS = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B",
         "lora_magnitude_vector")  # fmt: skip


@dataclass(frozen=True)
class LowRank:
    """The parts of ΔW = scale·B·A of one weight, by peft's names, and its scale."""

    scale: float
    parts: Mapping[str, torch.Tensor]

    def apply(self, weight: torch.Tensor, fan_in_fan_out: bool) -> torch.Tensor:
        """The merged weight, in float32.

        LoRA (arXiv:2106.09685): W' = W + scale·B·A, with B (out, r), A (r, in), W (out, in).
        DoRA (arXiv:2402.09353): W' = m · V / ‖V‖ by output row, with V = W + scale·B·A.
        Embeddings are stored (tokens, width) = (in, out), and so are the weights of GPT-2's
        Conv1D (`fan_in_fan_out`): there ΔW is transposed. The order of operations is peft's, so
        in float32 the result is peft's, bit for bit. Memory: a float32 matrix of W's
        size, two where transposed.
        """
        import torch

        embedding = "lora_embedding_A" in self.parts
        names = PARTS[2:4] if embedding else PARTS[:2]
        a, b = (self.parts[name].float() for name in names)
        transposed = embedding or fan_in_fan_out
        delta: torch.Tensor = (b @ a).mul_(self.scale)
        merged = delta.T.contiguous() if transposed else delta
        if merged.shape != weight.shape:
            raise LoradagError(
                f"its update has shape {tuple(merged.shape)}, the weight {tuple(weight.shape)}."
            )
        merged += weight
        magnitude = self.parts.get("lora_magnitude_vector")
        if magnitude is None:
            return merged
        norm: torch.Tensor = torch.linalg.norm(merged.T if transposed else merged, dim=1)
        factor = magnitude.float() / norm
        merged *= factor.view(1, -1) if transposed else factor.view(-1, 1)
        return merged

    def of_experts(self, shape: tuple[int, ...], transposed: bool) -> torch.Tensor:
        """ΔW of all experts, in float32.

        Of expert e it is scale·B_e·A_e. peft keeps A_e as rows e·r to (e+1)·r of A, which is
        (experts·r, in), and B_e as columns e, e + experts, e + 2·experts … of B, (out, r·experts).
        The order of operations is peft's.

        Args:
            shape: of the parameter, (experts, out, in), or (experts, in, out) if `transposed`.
        """
        import torch

        if set(self.parts) != set(PARTS[:2]):
            raise LoradagError(f"no merge into experts is known for {', '.join(self.parts)}.")
        a, b = (self.parts[name].float() for name in PARTS[:2])
        a = a.reshape(shape[0], -1, a.shape[-1])
        b = b.reshape(b.shape[0], -1, shape[0])
        order = "e i o" if transposed else "e o i"
        delta = torch.einsum(f"o r e, e r i -> {order}", b, a).mul_(self.scale)
        if delta.shape != shape:
            raise LoradagError(f"its update has shape {tuple(delta.shape)}, the weight {shape}.")
        return delta


@dataclass(frozen=True)
class Updates:
    """Of an adapter: low-rank updates and tensors that were trained in full, by parameter."""

    low_rank: dict[str, LowRank] = field(default_factory=dict)
    full: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def weights(self) -> set[str]:
        return set(self.low_rank) | set(self.full)


def read_adapter(folder: Path, parameters: Collection[str] = ()) -> Updates:
    """Every update of the adapter; none is passed over in silence.

    Full tensors are biases, `modules_to_save`, and embeddings that peft stores beside their
    update.

    Args:
        parameters: of the base, in its order; needed where experts are adapted.

    Raises:
        LoradagError: the adapter has what a merge does not know.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if str(config["init_lora_weights"]).startswith(("pissa", "corda", "olora")):
        raise LoradagError(
            f"{folder}: is an update of a residual of the base, not of the base. Save it with "
            "peft's path_initial_model_for_weight_conversion."
        )
    parts: dict[str, dict[str, torch.Tensor]] = {}
    full = {}
    unknown = []
    for key, tensor in sorted(load_file(folder / WEIGHTS).items()):
        name = key.removeprefix(PREFIX)
        part = next((part for part in PARTS if name.endswith(f".{part}")), None)
        if part:
            parts.setdefault(name.removesuffix(f".{part}"), {})[part] = tensor
        elif "lora_" in name or "token_adapter" in name:
            unknown.append(key)
        else:
            full[name.replace(".base_layer.", ".")] = tensor
    if unknown:
        raise LoradagError(f"{folder}: no merge is known for {', '.join(unknown[:3])}.")
    low_rank = {}
    for module, found in parts.items():
        parameter, key = _adapted(module, config, parameters)
        low_rank[parameter] = LowRank(_scale(config, key), found)
    return Updates(low_rank, full)


def _adapted(module: str, config: dict[str, Any], parameters: Collection[str]) -> tuple[str, str]:
    """The parameter that an adapter in `module` updates, and what peft's patterns call it.

    Where peft adapts parameters of a module it wraps that once for each, the first one innermost.
    """
    holder = re.sub(r"(\.base_layer)+$", "", module)
    targets = config.get("target_parameters") or []
    wrapped = [
        name
        for name in parameters
        if name.rpartition(".")[0] == holder
        and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if not wrapped:
        return f"{module}.weight", module
    name = wrapped[-1 - module.count(".base_layer")]
    return name, name


def _scale(config: dict[str, Any], name: str) -> float:
    """alpha/r, or alpha/sqrt(r) for rsLoRA (arXiv:2312.03732), by name with patterns."""

    def pick(patterns: str, default: Any) -> Any:
        if not config.get(patterns):
            return default
        from loradag.compat.peft import pattern_value

        return pattern_value(config[patterns], name, default)

    r = pick("rank_pattern", config["r"])
    alpha = pick("alpha_pattern", config["lora_alpha"])
    return float(alpha / math.sqrt(r) if config.get("use_rslora") else alpha / r)
