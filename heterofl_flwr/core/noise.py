"""Clipping and noise that fit the counting mean.

A mean over the clients that held an entry moves by up to C/m where one of m clients changes by up to C, so the noise on
it is that on the sum, divided by m: entries that few hold get more. An entry that nobody held is not released anew, and
gets none.

What is summed are whole numbers of steps of a grid, in double precision, which adds them exactly. A client's change is
shortened first and rounded towards zero then, so rounding makes no change longer than C, and the sum moves by no more
than C in truth and not only up to rounding. Discrete Gaussian noise on the sum is a whole number of steps as well.
Whatever follows, down to rounding to the model's precision, sees only what may be known.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

from heterofl_flwr.core.gaussian import BLOCK, Keystream, draw
from heterofl_flwr.core.reply import norm_between

Name = TypeVar("Name", bound=Hashable)

_ROUNDING = 1 - 1e-6
"""So that the rounding of the norm and of the shortened change does not lift it above its bound."""


@torch.no_grad()
def clipped(before: Mapping[str, Tensor], after: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return the parameters after a change that was shortened to an L2 norm of ``clip``, if it was longer."""
    length = norm_between(after, before)
    if length <= clip:
        return dict(after)
    share = _ROUNDING * clip / length
    return {name: torch.lerp(before[name], own, share) for name, own in after.items()}


@torch.no_grad()
def in_steps(vector: Mapping[Name, Tensor], clip: float, step: float) -> dict[Name, Tensor]:
    """Return a vector in whole steps of the grid, with an L2 norm of at most ``clip``.

    Parameters
    ----------
    vector : Mapping[Name, Tensor]
        Its parts, in double precision.
    clip : float
        L2 norm to which the vector is shortened, if it is longer.
    step : float
        Distance of two points of the grid.
    """
    length = math.hypot(*(own.norm().item() for own in vector.values()))
    share = min(1.0, _ROUNDING * clip / length) if length else 1.0
    return {name: (own * share / step).trunc_() for name, own in vector.items()}


@torch.no_grad()
def noised(total: Tensor, step: float, stream: Keystream) -> Tensor:
    """Return a sum of ``in_steps``, with noise of standard deviation ``DEVIATION`` steps, and no longer in steps."""
    return (total + draw(stream, total.shape).to(total.device)).mul_(step)


@torch.no_grad()
def released(
    old: Mapping[str, Tensor],
    mean: Mapping[str, Tensor],
    held: Callable[[str], Tensor],
    step: float,
    stream: Keystream | None = None,
) -> dict[str, Tensor]:
    """Return the global state after a round, with noise.

    Parameters
    ----------
    old : Mapping[str, Tensor]
        The global state before the round.
    mean : Mapping[str, Tensor]
        The counting mean of the clients' changes in steps of the grid, in double precision.
    held : Callable[[str], Tensor]
        From a parameter's name to how many clients held each of its entries: ``Aggregator.held``.
    step : float
        Distance of two points of the grid.
    stream : Keystream | None
        Where the noise comes from, for tests alone; by default a fresh one, whose key is forgotten.
    """
    stream = stream or Keystream()
    new = {name: own.clone(memory_format=torch.contiguous_format) for name, own in old.items()}
    for name, own in new.items():
        parts = (values.reshape(-1).split(BLOCK) for values in (own, mean[name], held(name)))
        for entries, means, clients in zip(*parts, strict=True):
            # Dividing rounded the means, by far less than would lead to another whole sum.
            total = (means * clients).round_()
            change = noised(total, step, stream).div_(clients.clamp(min=1))
            entries.copy_(torch.where(clients > 0, entries + change, entries))
    return new
