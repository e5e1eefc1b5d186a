"""Train clients' models, by an engine chosen by name."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.learn.choose import choose_engine
from heterofl_flwr.learn.cohort import train_cohort
from heterofl_flwr.learn.graph import train_graph
from heterofl_flwr.learn.model_state import device_of
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.plain import train_plain
from heterofl_flwr.learn.results import TrainResult
from heterofl_flwr.learn.work import Engine, Work

AUTO = "auto"
ENGINES: dict[str, Engine] = {"plain": train_plain, "graph": train_graph, "cohort": train_cohort}
"""Engines by name."""


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

    With ``engine="plain"`` and one thread the result is the same bit for bit, whatever else was drawn before: all
    draws come from ``seed``, and torch's global generators are left as they were. The model stays in training mode.

    A last batch of a single example is joined to the batch before it, because batch norm cannot normalise one value.

    Parameters
    ----------
    model : nn.Module
        From a batch of inputs to logits, classes on axis 1.
    split : Split
        The client's examples; moved to the model's device, once, if they are elsewhere.
    options : TrainOptions
        Learning rate, epochs and so on.
    classes : Sequence[int] | Tensor | None
        The classes that the client has: the loss is masked to them. None for all.
    seed : int
        Made of run, round and partition, for example ``derive(seed, "train", server_round, partition)``.
    engine : str
        ``auto``, or a name in ``ENGINES``.

    Raises
    ------
    DivergedError
        If a loss is NaN or infinite; the model is then of no use.
    """
    return train_together([Work(model=model, split=split, seed=seed, classes=classes)], options, engine=engine)[0]


def train_together(works: Sequence[Work], options: TrainOptions, *, engine: str = AUTO) -> list[TrainResult]:
    """Train the models of several clients in place, each as if it were alone, and return their results in order.

    Parameters
    ----------
    works : Sequence[Work]
        Clients whose models come from one builder at one rate; no two of them the same module.
    options : TrainOptions
        Learning rate, epochs and so on, for all.
    engine : str
        ``auto``, or a name in ``ENGINES``.
    """
    if engine == AUTO:
        engine = choose_engine(works, ENGINES)
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; expected auto or one of {', '.join(ENGINES)}")
    return ENGINES[engine]([replace(work, split=work.split.to(device_of(work.model))) for work in works], options)
