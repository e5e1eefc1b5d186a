"""What a Gaussian mechanism that is used again and again gives away, in Rényi differential privacy (Mironov, 2017).

A release is one sum of the clients' vectors of norm up to C, with noise of standard deviation ``noise`` times C on each
entry. Orders are whole numbers, where the divergence of the subsampled mechanism is a finite sum (Mironov, Talwar and
Zhang, 2019, section 3.3).
"""

import math
from collections.abc import Sequence
from functools import lru_cache

ORDERS: Sequence[int] = (*range(2, 64), 80, 96, 128, 192, 256, 512, 1024)


@lru_cache(maxsize=64)
def divergences(noise: float, rate: float) -> tuple[float, ...]:
    """Return the Rényi divergence of one release, by order.

    Parameters
    ----------
    noise : float
        Noise multiplier.
    rate : float
        Probability with which each client takes part, independently of all others; 1 where no chance hides it.
    """
    if not noise:
        return (math.inf,) * len(ORDERS)
    if rate == 1:
        return tuple(order / (2 * noise**2) for order in ORDERS)
    return tuple(_subsampled(noise, rate, order) for order in ORDERS)


def epsilon(spent: Sequence[float], delta: float) -> float:
    """Return the epsilon of divergences by order, which add up over releases (Canonne, Kamath and Steinke, 2020)."""
    return min(
        max(own + math.log1p(-1 / order) - math.log(delta * order) / (order - 1), 0.0)
        for own, order in zip(spent, ORDERS, strict=True)
    )


def _subsampled(noise: float, rate: float, order: int) -> float:
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(taken + 1)
        - math.lgamma(order - taken + 1)
        + taken * math.log(rate)
        + (order - taken) * math.log1p(-rate)
        + (taken * taken - taken) / (2 * noise**2)
        for taken in range(order + 1)
    ]
    largest = max(terms)
    return (largest + math.log(math.fsum(math.exp(term - largest) for term in terms))) / (order - 1)
