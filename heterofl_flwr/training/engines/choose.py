"""Engines by name, the choice of an engine, and training with it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from heterofl_flwr.common.errors import ConfigError, DataError
from heterofl_flwr.data.dataset import Split
from heterofl_flwr.nn.execution import device_of, num_parameters
from heterofl_flwr.training.batches import explained_single
from heterofl_flwr.training.engines.cohort import find_obstacle, train_cohort
from heterofl_flwr.training.engines.plain import train_plain
from heterofl_flwr.training.engines.seats import train_seats
from heterofl_flwr.training.options import TrainingJob, TrainOptions, TrainResult

MOST_ON_CPU = 250_000
"""Largest number of parameters of a model for which ``fastest_engine`` returns ``cohort`` on a CPU.

Measured on one thread with batches of 10, for the paper's CNN and PreResNet18: training together takes a third less
time than training one by one at 100,000 parameters, a fifth less at 250,000, and the same time at 600,000.
"""

Engine = Callable[[Sequence[TrainingJob], TrainOptions], list[TrainResult]]
"""Function that trains clients, each on its split's device, and returns results in the same order.

The engine ``cohort`` expects models of one type and rate.
"""

AUTO = "auto"
ENGINES: dict[str, Engine] = {
    "plain": train_plain,
    "cohort": train_cohort,
    "seats": train_seats,
}
"""Engines by name."""


def fastest_engine(model: nn.Module) -> str:
    """Return ``cohort`` or ``plain``, the engine that is probably faster for several clients with this model."""
    gains = device_of(model).type != "cpu" or num_parameters(model) <= MOST_ON_CPU
    return "cohort" if gains and find_obstacle(model) is None else "plain"


def train(
    model: nn.Module,
    split: Split,
    options: TrainOptions,
    *,
    classes: Sequence[int] | Tensor | None = None,
    seed: int,
    engine: str = "plain",
) -> TrainResult:
    """Train a model in place on one client's data.

    With ``engine="plain"`` and one thread, the result is reproducible bit for bit. All random numbers come from
    ``seed``. The model stays in training mode.

    If ``batch_size`` is above 1, and the last batch of an epoch would have a single example, this example is added to
    the batch before it, because batch norm cannot normalise a single example.

    Parameters
    ----------
    model, split, classes, seed
        See ``TrainingJob``. Examples on another device are moved to the model's device once.
    options : TrainOptions
        Learning rate, epochs and other options.
    engine : str
        ``auto``, or a name in ``ENGINES``.

    Raises
    ------
    DivergedError
        If a loss is NaN or infinite. The engines ``plain`` and ``seats`` then leave a useless model. ``cohort`` leaves
        the model unchanged, unless it has passed the client to ``plain`` (see ``train_cohort``).
    """
    job = TrainingJob(model=model, split=split, seed=seed, classes=classes)
    return train_together([job], options, engine=engine)[0]


def train_together(jobs: Sequence[TrainingJob], options: TrainOptions, *, engine: str = AUTO) -> list[TrainResult]:
    """Train the models of several clients in place, and return the results in the order of the clients.

    Each client's result is the same, up to rounding, as if the client were trained alone.

    Parameters
    ----------
    jobs : Sequence[TrainingJob]
        The clients. Their models are separate objects from the same build function. For ``cohort``, they have the same
        rate.
    options : TrainOptions
        Learning rate, epochs and other options.
    engine : str
        ``auto``, or a name in ``ENGINES``.
    """
    if engine == AUTO:
        engine = fastest_engine(jobs[0].model)
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; expected auto or one of {', '.join(ENGINES)}")
    if not all(len(job.split) for job in jobs):
        raise DataError("there are no examples to train on")
    # A cohort supports neither losses of several outputs nor penalties that are not quadratic.
    is_special = engine == "cohort" and any(job.joint_loss or job.penalty for job in jobs)
    run = train_plain if is_special else ENGINES[engine]
    with explained_single():
        return run([replace(job, split=job.split.to(device_of(job.model))) for job in jobs], options)
