"""The state of a run between two rounds, and the callbacks that get it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as shown
from typing import ClassVar

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.moving_slices import SliceFunction, prefix
from heterofl_flwr.federation.records import RoundRecord, State
from heterofl_flwr.stages.privacy_accountant import Releases


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """State of a run between two rounds, from which it can be resumed.

    Attributes
    ----------
    server_round
        The last round that is in it.
    state
        The global model's parameters after the round, from which training goes on.
    stages
        What the stages of the chain keep, by the stage's name and its own.
    moments
        The static batch norm moments of the last evaluation as tensors, if there were any: ``Moments.to_tensors``,
        with the rate and a slash before each name.
    run_key
        What tells the run from others to clients that keep something; None in states of older versions.
    trained
        The partitions of the clients that have trained, where clients keep something from round to round.
    dealt
        Of how many parts of the data the clients have one each, where all of them say so; else 0.
    nodes
        The registered names of the nodes, with the round since which they are away, or 0.
    releases
        The releases with noise that led to the model, those of the models that it was trained from included.
    setup
        Mix, seed and stages of the run as text, which must not change; empty in states of older versions.
    callbacks
        The states of the callbacks, by the names of their classes.
    """

    server_round: int
    state: State
    stages: State = field(default_factory=dict)
    moments: State = field(default_factory=dict)
    run_key: int | None = None
    trained: Sequence[int] = ()
    dealt: int = 0
    nodes: Mapping[str, int] = field(default_factory=dict)
    releases: Sequence[Releases] = ()
    setup: Mapping[str, str] = field(default_factory=dict)
    callbacks: Mapping[str, Mapping[str, object]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Progress(RunState):
    """State and record of a run after a round, for callbacks.

    Attributes
    ----------
    record
        The round's record.
    evaluated
        The parameters that are evaluated and kept: those of ``state``, but with stages such as ``MovingAverage``.
    num_rounds
        The last round of the run.
    evaluated_slice
        From the round of an evaluation and a smaller rate to the slice that was its model.
    level_tensors
        From a rate to the parameters in which its model differs from that slice (``Slicing.by_level``).
    """

    record: RoundRecord
    evaluated: State
    num_rounds: int
    evaluated_slice: Callable[[int, float], SliceFunction] = lambda *_: prefix
    level_tensors: Callable[[float], State] = lambda _: {}


class RoundCallback:
    """Override what you need; where you print each round, ``prints_rounds = True`` leaves out the strategy's lines.

    One that saves the run's state sets ``oldest_checkpoint``, the earlier of the two rounds that were saved last, so
    that clients with files of their own (``states-path``) keep those that go with these rounds.
    """

    prints_rounds: ClassVar[bool] = False
    oldest_checkpoint: int | None = None

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Run before the first round; ``first_round`` is above 1 where a run goes on."""

    def on_reply(self, what: str, done: int, total: int) -> None:
        """Run after each reply of a round: ``done`` of ``total`` clients have ``trained`` or ``evaluated``."""

    def on_round_end(self, progress: Progress) -> bool:
        """Run after each round; return True to stop the run after it."""
        del progress
        return False

    def on_end(self, state: State) -> None:
        """Run after the last round, also when it was stopped early."""

    def state(self) -> Mapping[str, object]:
        """Return what checkpoints store of this callback, as JSON holds it, such as its best value so far."""
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        """Restore what ``state`` returned, before ``on_start``, where a run goes on."""


def check_callbacks(callbacks: Sequence[RoundCallback]) -> tuple[RoundCallback, ...]:
    """Return callbacks; raise an error if one is none."""
    sequence = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    if sequence is not callbacks or not all(isinstance(callback, RoundCallback) for callback in sequence):
        raise ConfigError(f"callbacks is {shown(callbacks)}; expected a list of instances of RoundCallback")
    return tuple(sequence)


def name_callbacks(callbacks: Sequence[RoundCallback]) -> dict[str, RoundCallback]:
    """Return callbacks by the names of their classes; ``-2`` follows that of a second one."""
    named, counts = dict[str, RoundCallback](), Counter[str]()
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] += 1
        named[f"{name}-{counts[name]}" if counts[name] > 1 else name] = callback
    return named
