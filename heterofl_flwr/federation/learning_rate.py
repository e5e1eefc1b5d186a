"""Schedules of the learning rate."""

from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]
"""Function of the round, counted from 1, that returns the learning rate."""


def multi_step(
    learning_rate: float, milestones: Sequence[int] = (), factor: float = 0.1, decay: float = 1.0
) -> Schedule:
    """Return a schedule in which the learning rate drops at milestones (Table 6 of the paper).

    The learning rate is multiplied by ``factor`` after each round in ``milestones``, and by ``decay`` after each round.
    """

    def rate(server_round: int) -> float:
        passed = sum(milestone < server_round for milestone in milestones)
        return learning_rate * factor**passed * decay ** (server_round - 1)

    return rate
