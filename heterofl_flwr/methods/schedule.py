"""Learning rates by round."""

from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]
"""From the round, counted from 1, to the learning rate."""


def multi_step(learning_rate: float, milestones: Sequence[int] = (), factor: float = 0.1) -> Schedule:
    """Return a schedule that multiplies the learning rate by ``factor`` after each milestone (Table 6)."""

    def at(server_round: int) -> float:
        return learning_rate * factor ** sum(milestone < server_round for milestone in milestones)

    return at
