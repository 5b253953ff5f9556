"""What trl does to a model that it is given, and how it computes the loss without a GPU."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import trl.trainer.utils
from torch.nn.functional import cross_entropy, linear
from trl.kernels import ChunkedLogProbFunction

LOGIT_TOKENS = 128  # whose logits are there at once: those of more do not stay in a CPU's cache


def keep_trained_parameters(model: Any) -> Callable[[], None]:
    """A function that gives the trained parameters of `model` their present dtypes and values back.

    Why: `SFTTrainer` rounds what trains on a bitsandbytes base to bfloat16: slow on a CPU without
    it, and lossy for a start that was computed. Autocast rounds in each product instead.
    Versions: trl 1.16, in `SFTTrainer.__init__`, without an option.
    Unnecessary once peft can leave the dtype of adapters on a quantised base to the caller
    (https://github.com/huggingface/peft/issues/2889), and trl then does.
    """
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def restore() -> None:
        for name, parameter in model.named_parameters():
            if name in before:
                parameter.data = before[name]

    return restore


@contextmanager
def loss_in_one_pass() -> Iterator[None]:
    """Let `SFTTrainer` compute its loss on a CPU in the dtype of the training, and only once.

    Why: without Triton, trl computes the products of the output layer again in the backward pass,
    those of the gradient in float32, and all of them for ignored tokens too: with a vocabulary of
    49152 half of a step in bfloat16. Where Triton computes them, on a GPU, trl's function remains.
    Versions: trl 1.16, whose function has no option for it.
    Unnecessary once `torch.nn.functional.linear_cross_entropy` returns the loss of bfloat16 inputs
    in float32 (torch 2.13 rounds it), and trl calls it.
    """
    utils: Any = trl.trainer.utils
    before = utils._ChunkedLogProbFunction, utils._use_triton
    utils._ChunkedLogProbFunction = _LogProbabilities
    utils._use_triton = lambda device: True  # there it asks whether to leave out ignored tokens
    try:
        yield
    finally:
        utils._ChunkedLogProbFunction, utils._use_triton = before


class _LogProbabilities:
    """What trl calls for the log-probability of each target, with the arguments that it gives."""

    @staticmethod
    def apply(hidden: torch.Tensor, *rest: Any) -> Any:
        function = _OnePass if hidden.device.type == "cpu" else ChunkedLogProbFunction
        return function.apply(hidden, *rest)


class _OnePass(torch.autograd.Function):
    """The log-probabilities that an output layer gives to targets, on a CPU.

    A token's depends on no other token's hidden state. So its gradient is taken in the forward
    pass, while the logits are there (https://arxiv.org/abs/2410.10989).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        """Log-probabilities (tokens,) of `targets` (tokens,) after `hidden` (tokens, features).

        What else trl asks for, by `outputs`, is for metrics that nobody reads here: NaN.
        """
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else hidden.dtype
        weight = weight.detach().to(dtype)
        bias = None if bias is None else bias.detach().to(dtype)
        layer = zip((weight, bias), ctx.needs_input_grad[1:3], strict=True)
        trained = [p.requires_grad_() for p, is_trained in layer if p is not None and is_trained]
        sums = [torch.zeros_like(p, dtype=torch.float32) for p in trained]
        nll, to_hidden = [], []
        parts = zip(hidden.split(LOGIT_TOKENS), targets.split(LOGIT_TOKENS), strict=True)
        for states, labels in parts:
            with torch.enable_grad():
                states = states.to(dtype).detach().requires_grad_()
                logits = linear(states, weight, bias).float()
                if scale != 1:
                    logits = logits * scale
                if softcap is not None:
                    logits = softcap * torch.tanh(logits / softcap)
                if temperature != 1:
                    logits = logits / temperature
                part = cross_entropy(logits, labels, reduction="none")
                to_states, *to_trained = torch.autograd.grad(part.sum(), [states, *trained])
            nll.append(part.detach())
            to_hidden.append(to_states)
            for total, gradient in zip(sums, to_trained, strict=True):
                total += gradient
        ctx.save_for_backward(torch.cat(to_hidden).to(hidden.dtype), *sums)
        ctx.set_materialize_grads(False)
        unknown = [torch.full_like(targets, torch.nan, dtype=torch.float32) for _ in range(2)]
        ctx.mark_non_differentiable(*unknown)
        return -torch.cat(nll), unknown[0], None, None, unknown[1]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
        """Scale what `forward` found.

        Raises:
            NotImplementedError: the layer is trained, and the loss weighs tokens differently.
        """
        if gradient is None:
            return (None,) * 9
        to_hidden, *sums = ctx.saved_tensors
        factor = -gradient[:1].sum()
        if sums and bool((gradient != -factor).any()):
            raise NotImplementedError("the gradient of a trained output layer is that of a sum")
        found = iter(sums)
        layer = (factor * next(found) if need else None for need in ctx.needs_input_grad[1:3])
        return -gradient[:, None].to(to_hidden.dtype) * to_hidden, *layer, *[None] * 6
