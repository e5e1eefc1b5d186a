"""Clipping and noise that fit the counting mean.

A mean over the clients that held an entry moves by up to C/m where one of m clients changes by up to C, so the noise on
it is that on the sum, divided by m: entries that few hold get more. An entry that nobody held is not released anew, and
gets none.
"""

import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

from heterofl_flwr.core.reply import norm_between

_ROUNDING = 1 - 1e-6
"""So that rounding to single precision does not lift a clipped change above its bound."""


@torch.no_grad()
def clipped(before: Mapping[str, Tensor], after: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Return the parameters after a change that was shortened to an L2 norm of ``clip``, if it was longer."""
    length = norm_between(after, before)
    if length <= clip:
        return dict(after)
    share = _ROUNDING * clip / length
    return {name: torch.lerp(before[name], own, share) for name, own in after.items()}


@torch.no_grad()
def noised(
    mean: Mapping[str, Tensor], held: Mapping[str, Tensor], deviation: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Return a counting mean with noise.

    Parameters
    ----------
    mean : Mapping[str, Tensor]
        As ``Aggregator.result`` gives it.
    held : Mapping[str, Tensor]
        How many clients held each entry, as ``Aggregator.held`` gives it.
    deviation : float
        Standard deviation of the noise on a sum.
    generator : torch.Generator
        Where the noise comes from; see ``secret_generator``.
    """
    new = {}
    for name, own in mean.items():
        draw = torch.randn(own.shape, generator=generator, dtype=torch.float64).to(own.device)
        scale = torch.where(held[name] > 0, deviation / held[name].double().clamp(min=1), 0.0)
        new[name] = own + (draw * scale).to(own.dtype)
    return new


def secret_generator() -> torch.Generator:
    """Return a generator that nobody can repeat.

    The seed of a run is known to its clients. Whoever could draw the noise again could take it away.
    """
    return torch.Generator().manual_seed(secrets.randbits(63))
