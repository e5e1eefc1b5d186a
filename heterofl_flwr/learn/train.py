"""Train a client's model, by an engine chosen by name."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from heterofl_flwr.data.dataset import Split
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.learn.model_state import device_of
from heterofl_flwr.learn.options import TrainOptions
from heterofl_flwr.learn.plain import train_plain
from heterofl_flwr.learn.results import TrainResult

Engine = Callable[[nn.Module, Split, TrainOptions, Sequence[int] | Tensor | None, int], TrainResult]
"""From a model, a split on its device, options, classes and a seed to a result; trains the model in place."""

ENGINES: dict[str, Engine] = {"plain": train_plain}
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
        A name in ``ENGINES``.

    Raises
    ------
    DivergedError
        If a loss is NaN or infinite; the model is then of no use.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine is {engine!r}; expected one of {', '.join(ENGINES)}")
    return ENGINES[engine](model, split.to(device_of(model)), options, classes, seed)
