"""``RunState``, the state of a run between two rounds, and ``RoundCallback``, the base class of callbacks."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from reprlib import repr as shown

import numpy as np
import torch
from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, counted, first_line
from heterofl_flwr.core.slice_rules import SliceFunction, SliceRule, prefix
from heterofl_flwr.federation.round_record import RoundRecord, State
from heterofl_flwr.stages.privacy_accountant import Releases


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """State of a run between two rounds. The run can be resumed from it.

    Attributes
    ----------
    server_round
        The number of the latest finished round.
    state
        The global model's parameters after that round.
    stages
        The tensors of the stages' states, by names such as ``stage/tensor``.
    moments
        The static batch norm moments of the latest evaluation (``Moments.to_tensors``). Each name begins with the
        rate and a slash.
    run_key
        Random id of the run; clients discard state of other runs.
    trained
        The partitions of the clients that have trained; empty if clients store nothing between rounds.
    counted
        By partition, the latest round whose mean has a reply of the client; empty likewise. Clients drop the state of
        stages from later rounds.
    dealt
        The number of partitions of the data; 0 unless all clients report the same number.
    nodes
        By node name, the first round in which the node was away, or 0 if it is present. Present nodes without a
        registered name are left out.
    seats
        By registered node name, the number of the node's seat (``Nodes``) and the rate of this seat.
    releases
        Counts of the noisy models and moments published so far, by kind, noise, clip and source. Releases before a
        resume, and in earlier runs of the same strategy, are included.
    setup
        Mix, seed, stages and options of the run as text; a resumed run must have the same mix, seed and stages.
    callbacks
        The states of the callbacks by class name.
    evaluated_rule
        The slice rule of the models that clients evaluate; None if it is unknown, as in older checkpoints.
    """

    server_round: int
    state: State
    stages: State = field(default_factory=dict)
    moments: State = field(default_factory=dict)
    run_key: int | None = None
    trained: Sequence[int] = ()
    counted: Mapping[int, int] = field(default_factory=dict)
    dealt: int = 0
    nodes: Mapping[str, int] = field(default_factory=dict)
    seats: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    releases: Sequence[Releases] = ()
    setup: Mapping[str, str] = field(default_factory=dict)
    callbacks: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    evaluated_rule: SliceRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Progress(RunState):
    """State and record of a run after a round. It also has the attributes of ``RunState``.

    Attributes
    ----------
    record
        The round's record.
    evaluated
        The parameters to evaluate and save: ``state``, or the result of a stage such as ``MovingAverage``.
    num_rounds
        The number of the run's final round.
    evaluated_slice
        Function of a round and a rate. It returns the ``SliceFunction`` of the model to evaluate.
    level_tensors
        Function of a rate. It returns the values of the parameters in ``Slicing.by_level`` for the level of this rate;
        an empty dictionary if the level uses the values in ``state``.
    """

    record: RoundRecord
    evaluated: State
    num_rounds: int
    evaluated_slice: Callable[[int, float], SliceFunction] = lambda *_: prefix
    level_tensors: Callable[[float], State] = lambda _: {}


class RoundCallback:
    """Base class of callbacks. By default, its methods do nothing.

    A callback that prints each round itself sets ``prints_rounds = True``, so that the strategy does not log rounds. A
    callback that saves the run's state sets ``oldest_checkpoint`` to the earlier of the two latest saved rounds.
    Clients then keep the files in ``states-path`` that are needed to resume from this round.
    """

    prints_rounds: bool = False
    oldest_checkpoint: int | None = None

    def on_resume(self, progress: Progress) -> None:
        """Run before ``on_start`` if the run is resumed; ``progress.record`` is then empty."""

    def on_start(self, first_round: int, num_rounds: int, state: State) -> None:
        """Run before ``first_round``, which is above 1 if the run is resumed; ``state`` has the global parameters."""

    def on_reply(self, what: str, done: int, total: int, failed: int) -> None:
        """Run when messages are sent, and after each reply.

        ``done`` of ``total`` clients have replied. ``failed`` of these replies are errors. ``what`` is ``trained``,
        ``sent moments`` or ``evaluated``; ``published`` in the first exchange of ``FedH2L``. In asynchronous training,
        run only after each reply that a step uses; ``total`` is then the number of replies in a step.
        """

    def on_round_end(self, progress: Progress) -> bool:
        """Run after each round; return True to stop the run."""
        return False

    def on_end(self, state: State) -> None:
        """Run after the final round, also if a callback or ``should_stop`` ended the run early."""

    def on_error(self) -> None:
        """Run when an error ends the run; the error is raised afterwards."""

    def state(self) -> Mapping[str, object]:
        """Return this callback's state for checkpoints, in JSON types."""
        return {}

    def load(self, state: Mapping[str, object]) -> None:
        """Restore the state that ``state()`` returned; called before ``on_resume``."""


def check_callbacks(callbacks: object) -> tuple[RoundCallback, ...]:
    """Return a strategy's callbacks; raise ``ConfigError`` if they are no ``RoundCallback`` objects in a list."""
    expected = "expected a list of objects of subclasses of RoundCallback, such as [KeepBest()]"
    if not isinstance(callbacks, Iterable):
        raise ConfigError(f"callbacks is {shown(callbacks)}; {expected}")
    given = tuple(callbacks)
    for callback in given:
        if not isinstance(callback, RoundCallback):
            raise ConfigError(f"callbacks has {shown(callback)}; {expected}")
    return given


def progress_text(what: str, done: int, total: int, failed: int) -> str:
    """Return the arguments of ``on_reply`` as text, such as ``3 of 4 clients trained, 1 failed``."""
    return f"{done - failed} of {counted(total, 'client')} {what}" + (f", {failed} failed" if failed else "")


def is_true(result: object) -> bool:
    """Whether a callback's result is the boolean True of Python, NumPy or torch. Only such a result ends a run."""
    if isinstance(result, Tensor) and result.dtype == torch.bool and result.numel() == 1:
        return bool(result)
    return isinstance(result, bool | np.bool_) and bool(result)


def read_state(name: str, callback: RoundCallback) -> dict[str, object]:
    """Return a callback's state in JSON types; raise ``ConfigError`` if it has other types, or ``state()`` fails."""
    try:
        state: dict[str, object] = json.loads(json.dumps(dict(callback.state())))
    except Exception as error:  # of a user's method
        raise ConfigError(
            f"state() of the callback {name} gives nothing to save ({first_line(error)}), so this round has no "
            f"checkpoint: return a dictionary of numbers, texts, lists and dictionaries, such as float(x) in place of "
            f"a tensor x"
        ) from error
    return state


def name_callbacks(callbacks: Sequence[RoundCallback]) -> dict[str, RoundCallback]:
    """Return callbacks by class name. Repeated names get a suffix: ``-2``, ``-3``."""
    named, counts = dict[str, RoundCallback](), Counter[str]()
    for callback in callbacks:
        name = type(callback).__name__
        counts[name] += 1
        named[f"{name}-{counts[name]}" if counts[name] > 1 else name] = callback
    return named
