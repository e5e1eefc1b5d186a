"""What a Gaussian mechanism that is used again and again gives away, in Rényi differential privacy (Mironov, 2017).

A release is one sum of the clients' vectors of norm up to C, with discrete Gaussian noise of standard deviation
``noise`` times C on each entry. Its Rényi divergence is at most that of continuous noise (Canonne, Kamath and Steinke,
2020, proposition 5). That chance may leave a client out is not counted on: clients can compute who takes part.
"""

import math
from collections.abc import Sequence

ORDERS: Sequence[float] = tuple(1 + 2 ** (step / 8) for step in range(-80, 161))
"""From 1.001 to a million; the best one is closer to 1 the more is given away."""


def divergences(noise: float, releases: int, orders: Sequence[float] = ORDERS) -> list[float]:
    """Return the Rényi divergence of so many releases, which add up, by order."""
    return [releases * order / (2 * noise**2) for order in orders]


def epsilon(spent: Sequence[float], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Return the epsilon of divergences by order (Canonne, Kamath and Steinke, 2020, proposition 12)."""
    return min(
        max(own + math.log1p(-1 / order) - math.log(delta * order) / (order - 1), 0.0)
        for own, order in zip(spent, orders, strict=True)
    )
