"""Whether two models compute the same: logits, KL, perplexity, greedy text.

One model is in memory at a time: the first one's logits are on disk, a file a sequence.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loradag.evaluation.samples import greedy_ids
from loradag.models.device import compute_dtype, device
from loradag.models.placement import SPARE, free_bytes, input_device, weight_bytes

if TYPE_CHECKING:
    import torch

LONGEST = 512  # tokens of a sequence that are compared
LOGITS = "logits"


@dataclass(frozen=True)
class Probe:
    """What models are compared on, as token ids.

    Attributes:
        rows: held-out rows: logits and perplexity.
        texts: other texts: logits only.
        prompts: what greedy text continues.
        max_new_tokens: of each greedy text.
    """

    rows: list[list[int]]
    texts: list[list[int]]
    prompts: list[list[int]]
    max_new_tokens: int

    @property
    def sequences(self) -> list[list[int]]:
        return [ids[:LONGEST] for ids in self.rows + self.texts]


@dataclass(frozen=True)
class Parity:
    """How far the model after is from the model before.

    Attributes:
        max_abs_logit_diff: over all tokens and the full vocabulary.
        mean_abs_logit_diff: the same, mean.
        mean_kl: KL(before || after) of the next token's distribution, nats, mean over tokens.
        top_match: fraction of tokens after which both expect the same one most.
        perplexity_before: exp(sum of NLL / tokens) over the rows.
        perplexity_after: the same.
        mean_abs_nll_diff: of the rows' tokens, nats.
        greedy_match: length of the greedy text up to the first difference, as a fraction, mean
            over prompts.
    """

    max_abs_logit_diff: float
    mean_abs_logit_diff: float
    mean_kl: float
    top_match: float
    perplexity_before: float
    perplexity_after: float
    mean_abs_nll_diff: float
    greedy_match: float

    @property
    def perplexity_rise(self) -> float:
        return self.perplexity_after / self.perplexity_before - 1


def comparison_dtype(folder: Path) -> torch.dtype:
    """The dtype in which models of the size of `folder`'s are compared.

    float32: rounding in a computation of 16 bits hides differences of the weights. A device whose
    free memory is too small for the model in float32 computes in the dtype `auto`.
    """
    import torch

    if SPARE * weight_bytes(folder, torch.float32) > free_bytes(device()):
        return compute_dtype("auto")
    return torch.float32


def dtype_name(model: Any) -> str:
    """The dtype of every floating-point parameter of `model`; several are joined by `+`."""
    found = {str(p.dtype) for p in model.parameters() if p.is_floating_point()}
    return "+".join(sorted(name.removeprefix("torch.") for name in found))


def record(model: Any, probe: Probe, folder: Path) -> list[list[int]]:
    """Keep the logits of `model` in `folder`; return its greedy texts."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    for at, logits in enumerate(_logits(model, probe)):
        save_file({LOGITS: logits}, folder / f"{at}.safetensors")
    return greedy_ids(model, probe.prompts, probe.max_new_tokens)


def compare(model: Any, probe: Probe, folder: Path, greedy: list[list[int]]) -> Parity:
    """The parity of `model` with the one that `record` has put into `folder`.

    Args:
        greedy: what `record` returned.
    """
    greedy_after = greedy_ids(model, probe.prompts, probe.max_new_tokens)
    return parity(probe, recorded(folder), _logits(model, probe), greedy, greedy_after)


def recorded(folder: Path) -> Iterator[torch.Tensor]:
    """The logits in `folder`, a file a sequence, in the order of the sequences."""
    from safetensors.torch import load_file

    for at in range(len(list(folder.glob("*.safetensors")))):
        yield load_file(folder / f"{at}.safetensors")[LOGITS]


def parity(
    probe: Probe,
    logits_before: Iterable[torch.Tensor],
    logits_after: Iterable[torch.Tensor],
    greedy_before: list[list[int]],
    greedy_after: list[list[int]],
) -> Parity:
    """Compare the logits (tokens, vocabulary) of each sequence, and the greedy texts.

    Sums are taken in float64 of float32 logits.
    """
    import torch

    largest, difference, kl, top = 0.0, 0.0, 0.0, 0
    values, positions, targets = 0, 0, 0
    nll_before, nll_after, nll_difference = 0.0, 0.0, 0.0
    sequences = zip(probe.sequences, logits_before, logits_after, strict=True)
    for at, (ids, before, after) in enumerate(sequences):
        gap = (after - before).abs()
        largest = max(largest, float(gap.max()))
        difference += float(gap.sum(dtype=torch.float64))
        values += gap.numel()
        top += int((before.argmax(-1) == after.argmax(-1)).sum())
        before, after = before.log_softmax(-1), after.log_softmax(-1)
        kl += float((before.exp() * (before - after)).sum(dtype=torch.float64))
        positions += len(ids)
        if at < len(probe.rows):
            one, other = _nll(before, ids), _nll(after, ids)
            nll_before += float(one.sum())
            nll_after += float(other.sum())
            nll_difference += float((other - one).abs().sum())
            targets += len(ids) - 1
    return Parity(
        max_abs_logit_diff=largest,
        mean_abs_logit_diff=difference / values,
        mean_kl=kl / positions,
        top_match=top / positions,
        perplexity_before=perplexity(nll_before / targets),
        perplexity_after=perplexity(nll_after / targets),
        mean_abs_nll_diff=nll_difference / targets,
        greedy_match=greedy_match(greedy_before, greedy_after),
    )


def perplexity(nll: float) -> float:
    """exp(nats a token); infinite beyond the largest float."""
    return math.exp(nll) if nll < math.log(sys.float_info.max) else math.inf


def greedy_match(before: list[list[int]], after: list[list[int]]) -> float:
    """Length of the common start over the longer one's length, mean over pairs."""
    fractions = []
    for one, other in zip(before, after, strict=True):
        longer, shorter = max(len(one), len(other)), min(len(one), len(other))
        common = next((at for at in range(shorter) if one[at] != other[at]), shorter)
        fractions.append(common / longer if longer else 1.0)
    return sum(fractions) / len(fractions) if fractions else 1.0


def _logits(model: Any, probe: Probe) -> Iterator[torch.Tensor]:
    """(tokens, vocabulary) in float32 on the CPU, of each sequence by itself: no padding."""
    import torch

    for ids in probe.sequences:
        with torch.inference_mode():
            yield model(torch.tensor([ids], device=input_device(model))).logits[0].float().cpu()


def _nll(log_probabilities: torch.Tensor, ids: list[int]) -> torch.Tensor:
    """NLL of each token after the first, in nats and float64."""
    import torch

    return torch.nn.functional.nll_loss(
        log_probabilities[:-1].double(), torch.tensor(ids[1:]), reduction="none"
    )
