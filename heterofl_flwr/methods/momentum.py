"""Momentum of the global model, from round to round."""

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor


@torch.no_grad()
def moved(
    old: Mapping[str, Tensor], means: dict[str, Tensor], velocity: MutableMapping[str, Tensor], momentum: float
) -> dict[str, Tensor]:
    """Return the state that momentum makes of a round's means; they and the velocity are replaced.

    Parameters
    ----------
    old : Mapping[str, Tensor]
        The state before the round.
    means : dict[str, Tensor]
        The means of the round.
    velocity : MutableMapping[str, Tensor]
        How the model moves; nothing before the first round.
    momentum : float
        How much of the velocity is kept.
    """
    for name, mean in means.items():
        change = mean - old[name]
        step = momentum * velocity[name] + change if name in velocity else change
        # An entry without any change was trained by nobody: it and its momentum stay as they are.
        trained = change != 0
        velocity[name] = torch.where(trained, step, velocity.get(name, change))
        means[name] = torch.where(trained, old[name] + step, old[name])
    return means
