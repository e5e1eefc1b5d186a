"""``RunState``, the state of a run between two rounds, and ``RoundCallback``, the base class of callbacks."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as shown
from typing import ClassVar

from heterofl_flwr.common.errors import ConfigError, counted
from heterofl_flwr.core.moving_slices import SliceFunction, prefix
from heterofl_flwr.federation.round_record import RoundRecord, State
from heterofl_flwr.stages.privacy_accountant import Releases


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """State of a run between two rounds. The run can be resumed from this state.

    Attributes
    ----------
    server_round
        The number of the latest finished round.
    state
        The global model's parameters after that round; training continues from them.
    stages
        The tensors of the stages' states. Each name is the stage's name, then the tensor's.
    moments
        The static batch norm moments of the latest evaluation (``Moments.to_tensors``); empty without any. Each name
        begins with the rate and a slash.
    run_key
        Random id of the run; clients discard state of other runs. None in states of older versions.
    trained
        The partitions of the clients that have trained, if clients keep state from round to round.
    dealt
        The number of partitions of the data, if all clients report the same number; else 0.
    nodes
        Dictionary by registered node name. The value is the round in which the node became absent; 0 for present nodes.
    releases
        Number and noise of the differentially private results that the model was made from. If training started from a
        model of another run, the results of that run are included.
    setup
        Mix, seed and stages of the run as text; a resumed run must have the same. Empty in states of older versions.
    callbacks
        The states of the callbacks by class name (``name_callbacks``).
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
    """State and record of a run after a round, as callbacks get it. It also has the attributes of ``RunState``.

    Attributes
    ----------
    record
        The round's record.
    evaluated
        The parameters that are evaluated and saved. These are ``state``, or the result of a stage such as
        ``MovingAverage``.
    num_rounds
        The number of the run's final round.
    evaluated_slice
        Function of a round and a rate. It returns the rule that selected the entries of this rate's model, as evaluated
        in this round.
    level_tensors
        Function of a rate. It returns those parameters that have separate values for each level
        (``Slicing.by_level``), with the values of this rate's level.
    """

    record: RoundRecord
    evaluated: State
    num_rounds: int
    evaluated_slice: Callable[[int, float], SliceFunction] = lambda *_: prefix
    level_tensors: Callable[[float], State] = lambda _: {}


class RoundCallback:
    """Base class of callbacks; each method has a default that does nothing.

    A callback that prints each round itself sets ``prints_rounds = True``; the strategy then prints no lines of rounds.

    A callback that saves the run's state sets ``oldest_checkpoint`` to the earlier of the two rounds that it saved most
    recently. Clients that store their state in files (``states-path``) keep the files needed to resume from this round.
    """

    prints_rounds: ClassVar[bool] = False
    oldest_checkpoint: int | None = None

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Run before the first round; ``first_round`` is above 1 if the run is resumed."""

    def on_reply(self, what: str, done: int, total: int, failed: int) -> None:
        """Run after each reply of a round: ``done`` of ``total`` clients have replied, ``failed`` of these with errors.

        ``what`` is ``trained`` or ``evaluated``.
        """

    def on_round_end(self, progress: Progress) -> bool:
        """Run after each round; return True to stop the run."""
        return False

    def on_end(self, state: State) -> None:
        """Run after the run's final round, also if a callback stopped the run early."""

    def state(self) -> Mapping[str, object]:
        """Return this callback's state for checkpoints, such as the best value so far. Only JSON types are allowed."""
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        """Restore the state that ``state()`` returned; called before ``on_start`` if the run is resumed."""


def progress_text(what: str, done: int, total: int, failed: int) -> str:
    """Return the arguments of ``RoundCallback.on_reply`` as text."""
    return f"{done - failed} of {counted(total, 'client')} {what}" + (f", {failed} failed" if failed else "")


def check_callbacks(callbacks: Sequence[RoundCallback]) -> tuple[RoundCallback, ...]:
    """Return ``callbacks`` as a tuple; raise ``ConfigError`` if an element is not a ``RoundCallback``."""
    if not isinstance(callbacks, Sequence) or not all(isinstance(callback, RoundCallback) for callback in callbacks):
        raise ConfigError(f"callbacks is {shown(callbacks)}; expected a list of instances of RoundCallback")
    return tuple(callbacks)


def name_callbacks(callbacks: Sequence[RoundCallback]) -> dict[str, RoundCallback]:
    """Return callbacks by class name; the second callback of a class gets the suffix ``-2``, and so on."""
    named, counts = dict[str, RoundCallback](), Counter[str]()
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] += 1
        named[f"{name}-{counts[name]}" if counts[name] > 1 else name] = callback
    return named
