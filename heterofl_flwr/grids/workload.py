"""How much a client computes in a round, in multiplications."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from heterofl_flwr.nn.profile import build_and_profile

PASSES = 3
"""What training on an example costs in forward passes: the backward pass is as two."""


class Training:
    """The work of training on one's own examples; each rate's model is measured once.

    Parameters
    ----------
    build : Callable[[float], nn.Module]
        From a rate to the model at that rate.
    example : torch.Tensor
        A batch of one input.
    epochs : int
        Passes over a client's examples in a round.
    inputs : float
        How many such inputs an example is made of: a row of text is read piece by piece.
    smaller : Sequence[float]
        Rates of the models inside a client's own that its batches train as often, as ordered dropout does.
    """

    def __init__(
        self,
        build: Callable[[float], nn.Module],
        example: torch.Tensor,
        *,
        epochs: int = 1,
        inputs: float = 1.0,
        smaller: Sequence[float] = (),
    ) -> None:
        self._build = build
        self._example = example
        self._epochs = epochs
        self._inputs = inputs
        self._smaller = smaller
        self._known: dict[float, int] = {}

    def __call__(self, kind: str, partition: int, rate: float, examples: int) -> float:
        """Return the multiplications of a client's work."""
        del kind, partition
        return PASSES * self._epochs * examples * self.forward(rate)

    def forward(self, rate: float) -> float:
        """Return the multiplications of one forward pass of one example, at the widths that are trained."""
        rates = [rate, *(other for other in self._smaller if other < rate)]
        return self._inputs * math.fsum(map(self._macs, rates)) / len(rates)

    def _macs(self, rate: float) -> int:
        if rate not in self._known:
            self._known[rate] = build_and_profile(self._build, rate, self._example)[1].macs
        return self._known[rate]
