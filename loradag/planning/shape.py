"""The sizes of a model that the plan's formulas need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """A weight matrix that an adapter can be added to."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal language model.

    Attributes:
        parameters: of the model, tied weights counted once.
        hidden: size of the residual stream.
        intermediate: width of the feed-forward layer for a token.
        linears: the linear layers, without the output layer.
        embedding: tokens to hidden.
        output: hidden to tokens; tied or not.
        config: as JSON, of a model that the formulas do not cover, for peft to count.
        experts: number of parameters of experts and routers, which are not linear layers.
    """

    parameters: int
    hidden: int
    layers: int
    intermediate: int
    linears: tuple[Linear, ...]
    embedding: Linear
    output: Linear
    config: str | None = None
    experts: int = 0

    @property
    def vocabulary(self) -> int:
        return self.output.outputs

    @property
    def linear_parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears)
