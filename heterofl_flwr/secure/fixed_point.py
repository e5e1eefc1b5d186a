"""Fixed point: changes of parameters as whole numbers of steps, of which the sums of all clients fit into 32 bits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.common.errors import ReplyError

LARGEST_SUM = 2**31 - 1


def largest_steps(clients: int) -> int:
    """Return how many steps one of so many clients can change an entry by."""
    return LARGEST_SUM // clients


@torch.no_grad()
def to_steps(
    changes: Mapping[str, Tensor], bound: float, clients: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return changes in steps of ``bound / largest_steps(clients)``, each cut to the bound.

    Each becomes one of the two whole numbers beside it, drawn so that it is right on average. The nearest would lose
    what all clients change by less than half a step, round after round.
    """
    most, steps = largest_steps(clients), {}
    for name, change in changes.items():
        if not change.isfinite().all():
            raise ReplyError(f"parameter {name} changed to what is no finite number: train with a lower learning rate")
        draws = torch.rand(change.shape, generator=generator, dtype=torch.float64)
        steps[name] = (change.to("cpu", torch.float64) * (most / bound)).add_(draws).floor_().clamp_(-most, most)
    return steps
