"""The time of a round, and the shares of it that each exchange may take."""

import time

QUERY_SHARE = 0.25
"""Upper bound on the time for capability queries, as a fraction of a round's time."""

TRAIN_SHARE = 0.8
"""Fraction of a round's time for training, if an evaluation or queries of stages follow."""

MOMENTS_SHARE = 0.5
"""Fraction of the remaining time of a round for moments, or for each query of stages after training."""

STAGES_SHARE = 0.25
"""Fraction of the remaining time of a round for each query of stages before training."""

PUBLISH_SHARE = 0.8
"""Fraction of the training time that FedH2L's first exchange may take; in the second, clients run only a few steps."""

OVERDUE_SHARE = 0.25
"""Fraction of an asynchronous step's time limit that a client may take to reply. After that, another client begins to
train too; a late reply still counts.
"""


class Budget:
    """Time limit that all exchanges of a round share."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def extend(self, seconds: float) -> None:
        """Postpone the deadline by ``seconds``."""
        self._deadline += seconds

    def remaining(self, share: float = 1.0) -> float:
        """Return the remaining seconds times ``share``; 0 after the deadline."""
        return share * max(0.0, self._deadline - time.monotonic())
