"""The record of a round, the state of a run after it, and the callbacks that get both."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from reprlib import repr as shown
from typing import ClassVar

from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core import formatting as text
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.moving_slices import SliceFunction, prefix
from heterofl_flwr.federation.evaluation import WORST_ACCURACY, is_share
from heterofl_flwr.stages.privacy_accountant import Releases

State = Mapping[str, Tensor]
"""A model's parameters by name."""


host_log = logging.getLogger("flwr")
"""Flower's own log, which shows wherever an app runs."""


@dataclass(slots=True, kw_only=True)
class RoundRecord:
    """Everything that is known of one round, written as the round goes on.

    All values are plain Python, so a record is a line of JSON.

    Attributes
    ----------
    server_round
        The round, from 1.
    seconds
        Wall-clock time of the round, evaluation included.
    learning_rate
        The learning rate that the clients were sent; 0 where the server has none to send.
    rates
        The rate of each client that was asked to train, by partition.
    failures
        For each client that failed or was refused, by partition: why.
    answered, expected
        How many clients gave a usable reply, and how many would take part if no node were missing; 0 in histories of
        older versions.
    names
        The registered names of clients in ``failures``, by partition.
    away
        The names of nodes that left, with the round in which they were missed first.
    notes
        Remarks at the end of the round's line: nodes that are away, that do not answer or answer late, and others.
    refused
        Those of them whose reply was refused: it came, and could not be used.
    train
        Means of the clients' training metrics, weighted by examples; where rounds do not wait also of ``staleness``,
        how many steps ago a client had been sent its slice.
    train_by_level
        The same for each level.
    evaluate
        Metrics of the global model: ``global-accuracy``, ``local-accuracy``, ``worst-accuracy``, losses, and
        ``coverage``, the share of the clients that answered about the global model. Empty in rounds without evaluation.
    evaluate_by_level
        The same for each level's own model.
    evaluate_medians
        Of each metric of ``evaluate`` that comes from clients, the median over them, each counted once. Empty in
        histories of older versions.
    accuracy_deciles
        Of the clients' ``local-accuracy``, the nine deciles. Empty in histories of older versions.
    worst_client
        The partition of the client that ``worst-accuracy`` is of.
    evaluate_failures
        For each client whose evaluation or moments failed or were refused, by partition: why.
    evaluate_asked, evaluate_answers
        How many clients were drawn to evaluate, and how many of them did; of all that were drawn or of those that were
        asked about the global model, whichever share is smaller. 0 where none were, and in histories of older versions.
    partial
        The metrics of ``evaluate`` that come from fewer than half of the clients asked, and are never the best.
    privacy
        Where noise is added: ``epsilon``, what the run has given away so far at ``delta``; see ``Spent.metrics``.
    bytes_down, bytes_up
        Parameters and labels sent to and received from the clients for training.
    bytes_by_level
        What of ``bytes_down`` went to the clients of each level. Empty in histories of older versions.
    simulated_seconds, joules
        How long training would have taken on the simulated devices, and an estimate of the energy that all of them
        would have used; 0 where none are simulated.
    """

    server_round: int
    seconds: float
    learning_rate: float
    rates: dict[int, float]
    failures: dict[int, str] = field(default_factory=dict)
    answered: int = 0
    expected: int = 0
    names: dict[int, str] = field(default_factory=dict)
    away: dict[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    refused: Sequence[int] = ()
    train: dict[str, float] = field(default_factory=dict)
    train_by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluate: dict[str, float] = field(default_factory=dict)
    evaluate_by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluate_medians: Mapping[str, float] = field(default_factory=dict)
    accuracy_deciles: tuple[float, ...] = ()
    worst_client: int | None = None
    evaluate_failures: dict[int, str] = field(default_factory=dict)
    evaluate_asked: int = 0
    evaluate_answers: int = 0
    partial: Sequence[str] = ()
    privacy: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_by_level: dict[str, int] = field(default_factory=dict)
    simulated_seconds: float = 0.0
    joules: float = 0.0

    @property
    def few_answered(self) -> bool:
        """Whether fewer than half of the clients asked to evaluate answered."""
        return 2 * self.evaluate_answers < self.evaluate_asked

    @property
    def comparable(self) -> dict[str, float]:
        """The metrics of evaluation by which rounds can be compared: all that are not ``partial``.

        Of clients' own metrics it is the median where nothing bounds what one of them says: of all but the accuracies
        that are from 0 to 1.
        """
        return {
            name: value if is_share(name) else self.evaluate_medians.get(name, value)
            for name, value in self.evaluate.items()
            if name not in self.partial
        }

    @property
    def failed_names(self) -> list[str]:
        """The registered name of each client in ``failures``, or else its partition."""
        return [self.names.get(partition, f"partition {partition}") for partition in self.failures]

    def to_json(self) -> dict[str, object]:
        """Return the record as JSON can hold it."""
        return asdict(self)

    def note_costs(self, costs: Mapping[str, float]) -> None:
        """Note what the round has cost simulated devices."""
        self.simulated_seconds, self.joules = costs["simulated_seconds"], costs["joules"]

    def line(self) -> str:
        """Return the levels, from the largest on, with their clients and bytes, and the failures in one short line."""
        levels = []
        for rate, clients in sorted(Counter(self.rates.values()).items(), reverse=True):
            sent = self.bytes_by_level.get(level_name(rate))
            each = "" if sent is None else f"x{text.size(sent / clients)}"
            levels.append(f"{level_name(rate)} {clients}{each}")
        parts = [f"clients={self.answered}/{self.expected}", *levels]
        failed = [f"failed: {listed(self.failed_names)}"] if self.failures else []
        return "; ".join(
            [f"round {self.server_round}: {', '.join(parts)}", f"up {text.size(self.bytes_up)}", *failed, *self.notes]
        )

    def metrics_line(self) -> str:
        """Return the metrics as text: beside those of clients which share of them it is, where that is not all."""
        coverage = self.evaluate.get("coverage", 1.0)
        clients = {*self.evaluate_medians, WORST_ACCURACY} if coverage < 1 else ()
        return ", ".join(
            f"{name} {value:.4g}" + (f" (of {coverage:.0%} of the clients)" if name in clients else "")
            for name, value in {**self.train, **self.evaluate}.items()
        )

    def note_central(self, metrics: Mapping[str, object]) -> None:
        """Note the server's metrics: ``global-...`` replace those of clients, others of equal name get ``server-``."""
        clients = {name for name in (*self.train, *self.evaluate) if not name.startswith("global-")}
        named = {f"server-{name}" if name in clients else name: value for name, value in metrics.items()}
        numbers = self.note_computed(self.evaluate, named)
        self.partial = tuple(name for name in self.partial if name not in numbers)

    def note_changed(self, means: dict[str, float], metrics: Mapping[str, object]) -> None:
        """Note the metrics that a strategy's subclass has added to the means, or changed."""
        self.note_computed(means, {name: value for name, value in metrics.items() if means.get(name) != value})

    def note_computed(self, means: dict[str, float], computed: Mapping[str, object]) -> dict[str, float]:
        """Replace means by the numbers of a user's metrics function, and drop their medians."""
        numbers = {name: float(value) for name, value in computed.items() if isinstance(value, int | float)}
        means |= numbers
        self.evaluate_medians = {name: median for name, median in self.evaluate_medians.items() if name not in numbers}
        return numbers


def check_metrics(metrics: object, whose: str) -> None:
    """Raise an error if what a user's function has computed is neither metrics nor None."""
    if metrics is not None and not isinstance(metrics, Mapping):
        raise ConfigError(f"{whose} returned {shown(metrics)}; expected a MetricRecord, or None")


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

    One that keeps the run's state says by ``checkpoint_every`` after how many rounds, so that clients with files of
    their own (``states-path``) keep those that go with the last two of its states.
    """

    prints_rounds: ClassVar[bool] = False
    checkpoint_every: int = 1

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
