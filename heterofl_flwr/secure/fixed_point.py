"""Parameter changes as integers, whose sum over clients fits into 32 bits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError

LARGEST_SUM = 2**31 - 1


def largest_steps(clients: int) -> int:
    """Return the upper bound on one client's change of an entry, in fixed-point steps.

    The sum of such changes by ``clients`` clients fits into 32 bits.
    """
    return LARGEST_SUM // clients


def check_finite(changes: Mapping[str, Tensor]) -> None:
    """Raise ``ReplyError`` if a change contains NaN or infinity, which no whole number of steps can represent."""
    for name, change in changes.items():
        if not change.isfinite().all():
            raise ReplyError(f"parameter {name} changed to NaN or infinity: train with a lower learning rate")


@torch.no_grad()
def to_steps(
    changes: Mapping[str, Tensor], bound: float, clients: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Clip the entries of changes to ``±bound``, and return the changes as whole numbers of steps.

    A step is ``bound / largest_steps(clients)``. Rounding is stochastic and unbiased.
    """
    largest, steps = largest_steps(clients), {}
    for name, change in changes.items():
        draws = torch.rand(change.shape, generator=generator, dtype=torch.float64)
        scaled = change.to("cpu", torch.float64) * (largest / bound)
        steps[name] = scaled.add_(draws).floor_().clamp_(-largest, largest)
    return steps
