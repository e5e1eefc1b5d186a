"""A client's model and the smaller models inside it, which a step trains together (FjORD, in-place distillation)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.slice_plan import Plan
from heterofl_flwr.nn.execution import arguments

InnerWidths = Literal["none", "ordered", "drawn", "sandwich", "all"]
"""Widths that a step trains, of a client's full width and the smaller ones inside it.

``none``: the full width. ``ordered``: one, drawn from all (FjORD without distillation). ``drawn``: the full width and,
if the draw is a smaller one, that (FjORD). ``sandwich``: the full width, the smallest and one drawn from those between
(the sandwich rule). ``all``: all of them.
"""


def mean_passes(widths: InnerWidths, largest: float, rates: Iterable[float]) -> Mapping[float, float]:
    """Return the mean number of runs of each rate's model in a step of a client with the ``largest`` rate."""
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
    """A smaller model inside larger ones of one architecture: the first entries of their parameters.

    Its own parameters are not used, its buffers are.
    """

    def __init__(self, model: nn.Module, smaller: nn.Module) -> None:
        self._smaller, self._plan = smaller.train(), Plan.of(model, smaller)

    def output(self, model: nn.Module, inputs: object) -> object:
        """Return what the smaller model makes of a tensor, a tuple of arguments or a mapping, inside this model."""
        parts = self._plan.parts(dict(model.named_parameters()))
        return functional_call(self._smaller, parts, *arguments(inputs))


class Nested(nn.Module):
    """A model together with the smaller models inside it: the first entries of its parameters, which alone are trained.

    Called, it is the model itself. Draws are torch's own.

    Parameters
    ----------
    model : nn.Module
        The client's model.
    smaller : Sequence[nn.Module]
        The same architecture at smaller rates, the largest first; their own parameters are not used.
    widths : InnerWidths
        Which of them ``all_logits`` computes.
    """

    def __init__(self, model: nn.Module, smaller: Sequence[nn.Module], widths: InnerWidths = "all") -> None:
        super().__init__()
        if widths not in get_args(InnerWidths):
            raise ConfigError(f"widths is {widths!r}; expected one of {', '.join(get_args(InnerWidths))}")
        self.model, self.widths = model, widths
        # In a tuple, so that torch does not register them as children of this module.
        self._smaller = tuple(InnerWidth(model, inner) for inner in smaller)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the client's own width."""
        logits: Tensor = self.model(x)
        return logits

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of the widths that a step trains, the smallest first; its own is the last, if it is one."""
        inner = self._draw()
        outer = [] if self.widths == "ordered" and inner else [self(x)]
        return [cast("Tensor", self._smaller[number].output(self.model, x)) for number in inner] + outer

    def _draw(self) -> list[int]:
        """Return the numbers of the smaller models that a step trains, the smallest model first."""
        number = len(self._smaller)
        if self.widths == "all" or number == 0:
            return [*range(number - 1, -1, -1)]
        if self.widths == "sandwich":
            between = [int(torch.randint(number - 1, ()))] if number > 1 else []
            return [number - 1, *between]
        drawn = int(torch.randint(number + 1, ())) if self.widths in ("ordered", "drawn") else 0
        return [drawn - 1] if drawn else []
