"""A client's model and the smaller models inside it, which are trained together."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.nn.execution import arguments

InnerWidths = Literal["none", "ordered", "drawn", "sandwich", "all"]
"""Widths at which a training step runs the client's model: its full width, smaller widths inside it, or both.

``none``: the full width. ``ordered``: one width, drawn from all (FjORD without distillation). ``drawn``: the full
width, and a width drawn from all; if the full width is drawn, it runs once (FjORD). ``sandwich``: the full width, the
smallest width, and one drawn from the widths in between (the sandwich rule). ``all``: all widths.
"""


def mean_passes(widths: InnerWidths, largest: float, rates: Iterable[float]) -> Mapping[float, float]:
    """Return the mean number of times that a training step runs the model of each rate.

    ``largest`` is the rate of the client's model, and ``rates`` are the rates of the mix.
    """
    smaller = sorted((rate for rate in rates if rate < largest), reverse=True)
    if widths == "none" or not smaller:
        return {largest: 1.0}
    if widths == "ordered":
        return dict.fromkeys((largest, *smaller), 1 / (len(smaller) + 1))
    if widths == "drawn":
        return {largest: 1.0, **dict.fromkeys(smaller, 1 / (len(smaller) + 1))}
    if widths == "sandwich":
        return {largest: 1.0, **dict.fromkeys(smaller[:-1], 1 / max(len(smaller) - 1, 1)), smaller[-1]: 1.0}
    return dict.fromkeys((largest, *smaller), 1.0)


class InnerWidth:
    """A smaller model that computes with the first entries of a larger model's parameters."""

    def __init__(self, model: nn.Module, smaller: nn.Module) -> None:
        self._smaller, self._plan = smaller.train(), Plan.of(model, smaller)

    def output(self, model: nn.Module, inputs: object) -> object:
        """Return the smaller model's output, with the parameters of ``model``."""
        parts = self._plan.parts(dict(model.named_parameters()))
        return functional_call(self._smaller, parts, *arguments(inputs))


class Nested(nn.Module):
    """A client's model, and smaller models that compute with the first entries of its parameters.

    Parameters
    ----------
    model : nn.Module
        The client's model.
    smaller : Sequence[nn.Module]
        Models of the same architecture at smaller rates, the largest first. Their own parameters are not used.
    widths : InnerWidths
        Choice of the models that ``all_logits`` runs.
    """

    def __init__(self, model: nn.Module, smaller: Sequence[nn.Module], widths: InnerWidths = "all") -> None:
        super().__init__()
        self.model, self.widths = model, widths
        # In a tuple, so that torch does not register them as children of this module.
        self._smaller = tuple(InnerWidth(model, inner) for inner in smaller)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the client's model."""
        logits: Tensor = self.model(x)
        return logits

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of the models that ``widths`` selects, the smallest model first.

        For ``ordered``, ``drawn`` and ``sandwich``, each call draws one width at random.
        """
        inner = self._draw()
        # Copies of x, because a model may change its inputs in place.
        outer = [] if self.widths == "ordered" and inner else [self(x.clone())]
        return [cast("Tensor", self._smaller[number].output(self.model, x.clone())) for number in inner] + outer

    def _draw(self) -> list[int]:
        number = len(self._smaller)
        if self.widths == "all" or number == 0:
            return [*range(number - 1, -1, -1)]
        if self.widths == "sandwich":
            between = [int(torch.randint(number - 1, ()))] if number > 1 else []
            return [number - 1, *between]
        drawn = int(torch.randint(number + 1, ())) if self.widths in ("ordered", "drawn") else 0
        return [drawn - 1] if drawn else []
