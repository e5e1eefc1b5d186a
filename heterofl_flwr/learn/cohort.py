"""The engine ``cohort``: clients of one level train together, each as if it were alone."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from heterofl_flwr.learn.joint import Joint, Vmapped, Wide
from heterofl_flwr.learn.model_state import device_of, seeded
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.plain import DivergedError, check_examples, train_plain
from heterofl_flwr.learn.results import TrainResult
from heterofl_flwr.learn.together import Together
from heterofl_flwr.learn.work import Work

_log = logging.getLogger(__name__)

WAYS: Mapping[str, Sequence[type[Joint]]] = MappingProxyType({"cpu": (Wide,), "cuda": (Wide, Vmapped)})
"""Ways to compute clients together by type of device, the better first; on a CPU ``Vmapped`` gains too little."""


class CohortDivergedError(DivergedError):
    """Some clients of a cohort diverged; the others are trained.

    Attributes
    ----------
    outcomes
        For each client, in order, its result or its error.
    """

    def __init__(self, outcomes: Sequence[TrainResult | DivergedError]) -> None:
        super().__init__(outcomes)
        self.outcomes = tuple(outcomes)

    def __str__(self) -> str:
        """Return what each error says, with the client's place."""
        number = len(self.outcomes)
        return "; ".join(
            f"client {place} of {number}: {outcome}"
            for place, outcome in enumerate(self.outcomes, 1)
            if isinstance(outcome, DivergedError)
        )


def train_cohort(works: Sequence[Work], options: TrainOptions) -> list[TrainResult]:
    """Train clients together; equal to ``plain`` up to rounding.

    Clients stay independent: each has its own batches, classes and clipping, and they need not have equally many
    examples. Before models are computed together it is proved, on a batch, that each gets what it gets alone. Where
    that fails, or anything else does, the models are still as they were received and are trained by ``plain``; a log
    entry says why. So are models with active dropout, models whose buffers change in training (batch norm with running
    statistics), and models with hooks.

    Raises
    ------
    CohortDivergedError
        If a loss is NaN or infinite. The other clients are trained.
    """
    for work in works:
        check_examples(work)
    if len(works) < 2:
        return train_plain(works, options)
    outcomes = [
        result or _train_alone(work, options)
        for work, result in zip(works, _train_together(works, options), strict=True)
    ]
    results = [outcome for outcome in outcomes if isinstance(outcome, TrainResult)]
    if len(results) < len(outcomes):
        raise CohortDivergedError(outcomes)
    return results


def _train_together(works: Sequence[Work], options: TrainOptions) -> list[TrainResult | None]:
    """Train clients in the first way that fits; None for those that are left as they were."""
    device = device_of(works[0].model)
    for way in WAYS.get(device.type, ()):
        try:
            with seeded(0, device):
                return Together(works, options, way).train()
        except Exception as error:  # alone the clients either meet it too, and say it as plain does, or they do not
            _tell(type(works[0].model).__name__, way.__name__.lower(), f"{type(error).__name__}: {error}")
    return [None] * len(works)


def _train_alone(work: Work, options: TrainOptions) -> TrainResult | DivergedError:
    try:
        return train_plain([work], options)[0]
    except DivergedError as error:
        return error


@lru_cache(maxsize=256)
def _tell(model: str, way: str, reason: str) -> None:
    """Say, once, why models are not trained together."""
    _log.info("clients with a %s cannot train together (%s): %s", model, way, reason)
