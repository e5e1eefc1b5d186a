"""A client's model and the smaller models inside it, which a step trains together (FjORD, in-place distillation)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heterofl_flwr.core.plan import Plan
from heterofl_flwr.errors import ConfigError

InnerWidths = Literal["none", "ordered", "drawn", "sandwich", "all"]
"""Which widths a step trains: a client's own, and which of the smaller ones inside it.

``none``: its own alone. ``ordered``: one, drawn from its own and the smaller ones (FjORD without distillation).
``drawn``: its own and, if the draw is a smaller one, that (FjORD). ``sandwich``: its own, the smallest and one drawn
from those between (the sandwich rule). ``all``: its own and all smaller ones.
"""


def mean_passes(widths: InnerWidths, own: float, rates: Iterable[float]) -> Mapping[float, float]:
    """Return how often a step runs the model of each rate in the mean, at the rates of a mix and a client's own."""
    smaller = sorted((rate for rate in rates if rate < own), reverse=True)
    if widths == "none" or not smaller:
        return {own: 1.0}
    if widths == "ordered":
        return dict.fromkeys((own, *smaller), 1 / (len(smaller) + 1))
    if widths == "drawn":
        return {own: 1.0, **dict.fromkeys(smaller, 1 / (len(smaller) + 1))}
    if widths == "sandwich":
        return {own: 1.0, **dict.fromkeys(smaller[:-1], 1 / max(len(smaller) - 1, 1)), smaller[-1]: 1.0}
    return dict.fromkeys((own, *smaller), 1.0)


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
        self._smaller = tuple((one.train(), Plan.of(model, one)) for one in smaller)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the client's own width."""
        logits: Tensor = self.model(x)
        return logits

    def all_logits(self, x: Tensor) -> list[Tensor]:
        """Return the logits of the widths that a step trains, the smallest first; its own is the last, if it is one."""
        inner = self._draw()
        own = [] if self.widths == "ordered" and inner else [self(x)]
        return [self._inner_logits(number, x) for number in inner] + own

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

    def _inner_logits(self, number: int, x: Tensor) -> Tensor:
        smaller, plan = self._smaller[number]
        logits: Tensor = functional_call(smaller, plan.parts(dict(self.model.named_parameters())), (x,))
        return logits
