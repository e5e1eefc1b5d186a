"""Losses of a model with early exits."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from heterofl_flwr.nn.loss import masked_cross_entropy
from heterofl_flwr.training.fedh2l import divergence

TrainedExits = Literal["last", "mutual", "deepest"]
"""Exits that a client trains.

``last``: only the deepest exit. ``mutual``: all exits, each of which also learns from all others. ``deepest``: all
exits, and the shallower exits also learn from the deepest.
"""


def mutual_loss(logits: Sequence[Tensor], targets: Tensor, *, weight: float = 1.0, temperature: float = 1.0) -> Tensor:
    """Return DepthFL's loss (Kim et al., ICLR 2023): all exits learn from the labels and from each other.

    With d exits it is ``sum_i CE_i + weight / (d - 1) * sum_i sum_{j != i} T^2 KL(p_j, p_i)``. CE_i is the cross
    entropy of exit i, and p_i are its class probabilities at temperature T. No gradient flows through p_j.
    """
    posteriors = [soft_targets(exit_logits, temperature) for exit_logits in logits]
    total = torch.stack([masked_cross_entropy(exit_logits, targets) for exit_logits in logits]).sum()
    for number, exit_logits in enumerate(logits):
        if peers := posteriors[:number] + posteriors[number + 1 :]:
            distance = divergence(finite_logits(exit_logits), torch.stack(peers), temperature)
            total = total + weight * temperature**2 * distance
    return total


def deepest_loss(logits: Sequence[Tensor], targets: Tensor, *, weight: float = 1.0, temperature: float = 3.0) -> Tensor:
    """Return ScaleFL's loss (Ilhan et al., CVPR 2023): the deepest exit teaches the others.

    With d exits it is ``2 / (d (d + 1)) * sum_j j (CE_j + [j < d] weight * T^2 KL(p_d, p_j))``. CE_j is the cross
    entropy of exit j, and p_j are its class probabilities at temperature T. [j < d] is 1 if j < d, else 0. No
    gradient flows through p_d. The authors' code differs from this: it lets a gradient flow through p_d, and divides
    the divergence by the number of classes.
    """
    teacher, exits = soft_targets(logits[-1], temperature)[None], len(logits)
    total = exits * masked_cross_entropy(logits[-1], targets)
    for number, exit_logits in enumerate(logits[:-1], 1):
        distance = weight * temperature**2 * divergence(finite_logits(exit_logits), teacher, temperature)
        total = total + number * (masked_cross_entropy(exit_logits, targets) + distance)
    return total / (exits * (exits + 1) / 2)


EXIT_LOSSES: Mapping[TrainedExits, Callable[..., Tensor]] = {"mutual": mutual_loss, "deepest": deepest_loss}
"""Losses by value of ``train.exits``, except ``last``, which uses the ordinary loss of the deepest exit."""


def ramp_up(exits: TrainedExits, server_round: int, rounds: float) -> float:
    """Return the factor of the divergence in the loss of round ``server_round``.

    Let t be the number of earlier rounds. With ``mutual`` (DepthFL), the factor is ``exp(-5 (1 - t / rounds)^2)`` while
    t is below ``rounds``, and then 1. With ``deepest`` (ScaleFL), it is 0 while t is below ``rounds``, and then 1; in
    the authors' code it is still 0 where t equals ``rounds``.
    """
    remaining = max(1 - (server_round - 1) / rounds, 0.0) if rounds else 0.0
    if exits == "deepest":
        return float(remaining < 1e-9)  # 0.07 of 100 rounds are 7.000000000000001
    return math.exp(-5 * remaining**2)


def soft_targets(logits: Tensor, temperature: float) -> Tensor:
    """Return class probabilities at a temperature, without a gradient."""
    return (finite_logits(logits.detach()) / temperature).softmax(1)


def finite_logits(logits: Tensor) -> Tensor:
    """Replace logits of -inf by -1e4, because a loss with -inf would contain 0 times infinity. Keep NaN."""
    return logits.masked_fill(logits.isneginf(), -1e4)
