"""The choice of an engine."""

from collections.abc import Collection, Sequence

from heterofl_flwr.learn.cohort import WAYS
from heterofl_flwr.learn.model_state import device_of
from heterofl_flwr.learn.obstacles import obstacle
from heterofl_flwr.learn.work import Work

MOST_ON_CPU = 250_000
"""Parameters of a model up to which training together gains on a CPU.

Measured on one thread with five and ten clients and batches of 10, the paper's CNN and PreResNet18 at widths between
their levels b and d: at 100,000 parameters a step takes a third less time than alone, here a fifth less, at 400,000 a
tenth less, at 600,000 as much.
"""


def choose_engine(works: Sequence[Work], engines: Collection[str]) -> str:
    """Return the name of the engine that is likely the fastest for these clients.

    Parameters
    ----------
    works : Sequence[Work]
        The clients; their models are of one kind.
    engines : Collection[str]
        The names to choose from; ``plain`` is among them.
    """
    if not works:
        return "plain"
    model = works[0].model
    device = device_of(model).type
    if len(works) == 1:
        return "graph" if device == "cuda" and "graph" in engines else "plain"
    small = sum(parameter.numel() for parameter in model.parameters()) <= MOST_ON_CPU
    gains = device in WAYS and (device != "cpu" or small)
    return "cohort" if "cohort" in engines and gains and obstacle(model) is None else "plain"
