"""The time of a round: how its exchanges share it."""

import time

TRAIN_SHARE = 0.8
"""Of a round's time, for training, where clients evaluate after it."""

MOMENTS_SHARE = 0.5
"""Of the time that is left of a round, for moments; the rest is for the evaluation."""

STAGES_SHARE = 0.25
"""Of the time that is left of a round, for a question of stages before training."""


class Budget:
    """The seconds of a round, which all of its exchanges share, so that nobody can hold it up in each of them."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def extend(self, seconds: float) -> None:
        """Leave out time that does not count."""
        self._deadline += seconds

    def left(self, share: float = 1.0) -> float:
        """Return a share of the seconds that are left."""
        return share * max(0.0, self._deadline - time.monotonic())
