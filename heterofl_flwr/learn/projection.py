"""What becomes of gradients that are at odds: the part of one that would undo another is taken out."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Literal

import torch
from torch import Tensor

Projection = Literal["none", "pcgrad", "gem"]

MOST_CONSTRAINTS = 8  # gem tries each subset of them


def project_pcgrad(gradient: Tensor, constraints: Sequence[Tensor]) -> Tensor:
    """Return a gradient without its components against the constraints, taken out one after the other.

    After the last of several, it may be at odds with an earlier one again.
    """
    for constraint in constraints:
        product, square = gradient.dot(constraint), constraint.dot(constraint)
        if product < 0:
            gradient = gradient - product / square * constraint
    return gradient


def project_gem(gradient: Tensor, constraints: Sequence[Tensor]) -> Tensor:
    """Return the gradient that is nearest to a given one and at odds with no constraint.

    That is the given one plus a combination, with no negative weight, of the constraints that stay active: of the few
    subsets of constraints, the one whose combination fits (the conditions of Karush, Kuhn and Tucker).
    """
    if len(constraints) > MOST_CONSTRAINTS:
        raise ValueError(f"{len(constraints)} constraints, expected at most {MOST_CONSTRAINTS}")
    rows = [row for row in constraints if row.dot(row) > 0]
    if all(row.dot(gradient) >= 0 for row in rows):
        return gradient
    # In units of their own lengths and in double precision, as constraints may be nearly alike.
    units = torch.stack([row.double() / row.double().norm() for row in rows])  # (constraints, parameters)
    exact = gradient.double()
    found: list[tuple[float, Tensor]] = []
    for number in range(1, len(rows) + 1):
        for subset in combinations(range(len(rows)), number):
            active = units[list(subset)]
            weights = torch.linalg.lstsq(active @ active.T, -(active @ exact)).solution
            moved = exact + weights @ active
            worst = float((units @ moved).min()) / max(float(exact.norm()), 1e-300)
            if bool((weights >= -1e-9).all()) and worst >= -1e-7:
                found.append((float((moved - exact).norm()), moved))
    # Where rounding hides the subset that fits, nothing of the gradient is left rather than a wrong one.
    nearest = min(found, key=lambda one: one[0])[1] if found else torch.zeros_like(exact)
    return nearest.to(gradient.dtype)


def join_none(private: Tensor, shared: Tensor) -> Tensor:
    """Return the sum of two gradients."""
    return private + shared


def join_pcgrad(private: Tensor, shared: Tensor) -> Tensor:
    """Return the sum of two gradients, each without its component against the other (PCGrad)."""
    return project_pcgrad(private, [shared]) + project_pcgrad(shared, [private])


def join_gem(private: Tensor, shared: Tensor) -> Tensor:
    """Return what is nearest to the sum of two gradients and at odds with neither (as in GEM)."""
    return project_gem(private + shared, [private, shared])


JOIN: dict[Projection, Callable[[Tensor, Tensor], Tensor]] = {
    "none": join_none,
    "pcgrad": join_pcgrad,
    "gem": join_gem,
}
"""From the gradients of a client's own data and of the shared seed set to that of a step."""
