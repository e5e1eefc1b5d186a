"""Ordered dropout (FjORD): a client trains its model and, as often, each smaller one inside it."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call

from heterofl_flwr.core.plan import Plan


class OrderedDropout(nn.Module):
    """A model that in training computes with a width drawn anew for each batch, in evaluation with its own.

    The smaller models are the first entries of this one's parameters, which alone are trained. The draw is torch's own.

    Parameters
    ----------
    model : nn.Module
        The client's model.
    smaller : Sequence[nn.Module]
        The same architecture at smaller rates; their own parameters are not used.
    """

    def __init__(self, model: nn.Module, smaller: Sequence[nn.Module]) -> None:
        super().__init__()
        self.model = model
        # In a tuple, so that they are none of this module's own.
        self._smaller = tuple((one, Plan.of(model, one)) for one in smaller)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of one of the widths."""
        number = int(torch.randint(len(self._smaller) + 1, ())) if self.training else 0
        if number == 0:
            logits: torch.Tensor = self.model(x)
            return logits
        smaller, plan = self._smaller[number - 1]
        parameters = plan.parts(dict(self.model.named_parameters()))
        found: torch.Tensor = functional_call(smaller.train(), parameters, (x,))
        return found
