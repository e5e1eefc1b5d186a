"""``RoundRecord``: clients, metrics, failures and costs of a round."""

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields
from reprlib import repr as shown
from typing import TypeVar

from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core import formatting as text
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.client_metrics import WORST_ACCURACY, is_share

Value = TypeVar("Value")

State = Mapping[str, Tensor]
"""A model's parameters by name."""


ROUND = "round"
"""Name of the ``logging.LogRecord`` attribute that holds the ``RoundRecord`` of a round."""

host_log = logging.getLogger("flwr")
"""Flower's logger, whose lines are shown in every app."""


def server_names(metrics: Mapping[str, Value], clients: Collection[str]) -> dict[str, Value]:
    """Return the server's ``metrics``; a name that is also in ``clients`` gets the prefix ``server-``."""
    return {f"server-{name}" if name in clients else name: value for name, value in metrics.items()}


@dataclass(slots=True, kw_only=True)
class RoundRecord:
    """Clients, metrics, failures and costs of one round; fields are filled in during the round.

    Attributes
    ----------
    server_round
        The number of the round, counted from 1.
    seconds
        Wall-clock time of the round, including evaluation.
    learning_rate
        The learning rate that the server sent to clients; 0 if the clients choose it.
    rates
        The rate of each client sampled to train, by partition.
    failures
        For each client that failed, or whose reply was refused: the reason, by partition.
    answered, expected
        ``answered`` is the number of clients with a usable reply. ``expected`` is the number of clients that would
        take part if no node were missing; in asynchronous runs, it is the number of replies in a step.
    names
        The registered names of the clients in ``rates``, ``failures`` and ``evaluate_failures``, by partition; the ids
        of failed ones without a usable answer to the capability query.
    away
        The nodes that left, by name, each with the first round in which it was away.
    unanswered
        The names of the nodes that did not answer the capability query.
    notes
        Remarks for the log, for example about nodes that are away, silent or late.
    refused
        The partitions of clients whose reply was refused; they are in ``failures`` too.
    unsent
        The partitions of clients to which no training message was sent, such as those whose simulated device was
        unavailable, or that a stage excluded before training; they are in ``failures`` too.
    spared
        With spare clients: the partitions of the clients that had not replied when enough others had. They are not in
        ``failures``.
    train
        Means of the clients' training metrics, weighted by examples. In asynchronous runs also the mean
        ``staleness`` (``server-staleness`` if clients report a metric of this name).
    train_by_level
        The same means for each level.
    evaluate
        Metrics of the global model: ``global-accuracy``, ``local-accuracy``, ``worst-accuracy``, losses and
        ``coverage``, the fraction of the present clients that evaluated the global model. Empty in rounds without
        evaluation.
    evaluate_by_level
        Means of the clients' metrics for the model of each level.
    evaluate_medians
        For each metric in ``evaluate`` that clients report: its median over the clients.
    accuracy_deciles
        The nine deciles of the clients' ``local-accuracy``.
    worst_client
        The partition of the client with the lowest ``local-accuracy``.
    evaluate_failures
        For each client whose evaluation or moments failed or were refused: the reason, by partition.
    evaluate_asked, evaluate_answers
        The number of clients sampled to evaluate, and the number of these that answered; 0 without evaluation. Both
        count either all sampled clients, or only those sampled to evaluate the global model: the group of which the
        smaller fraction answered.
    partial
        If ``few_answered``: the names of the metrics in ``evaluate`` that are computed from the clients' metrics. Their
        values are never the best of a run.
    stages
        Metrics of the stages, such as ``epsilon``, the privacy spent so far.
    bytes_down, bytes_up
        Bytes of the arrays that the server sent to clients for training, and received from them.
    bytes_by_level
        The ``bytes_down`` of each level.
    simulated_seconds, joules
        Time and estimated energy of training on the simulated devices; 0 if devices are not simulated.
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
    unanswered: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refused: tuple[int, ...] = ()
    unsent: tuple[int, ...] = ()
    spared: tuple[int, ...] = ()
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
    partial: tuple[str, ...] = ()
    stages: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_by_level: dict[str, int] = field(default_factory=dict)
    simulated_seconds: float = 0.0
    joules: float = 0.0

    @classmethod
    def empty(cls, server_round: int) -> "RoundRecord":
        """Return the record of a round without clients."""
        return cls(server_round=server_round, seconds=0.0, learning_rate=0.0, rates={})

    @property
    def few_answered(self) -> bool:
        """Whether ``evaluate_answers`` is less than half of ``evaluate_asked``."""
        return 2 * self.evaluate_answers < self.evaluate_asked

    @property
    def received_rates(self) -> list[float]:
        """The rates of the clients to which a training message was sent."""
        return [rate for partition, rate in self.rates.items() if partition not in self.unsent]

    @property
    def comparable(self) -> dict[str, float]:
        """Metrics of ``evaluate`` for comparing rounds, without the metrics in ``partial``.

        Accuracies in ``SHARES`` keep their values. Other metrics from clients are medians, which no single client can
        distort.
        """
        return {
            name: value if is_share(name) else self.evaluate_medians.get(name, value)
            for name, value in self.evaluate.items()
            if name not in self.partial
        }

    def name(self, partition: int) -> str:
        """Return the registered name of the client with this partition; ``partition N`` if it has none."""
        return self.names.get(partition, f"partition {partition}")

    @property
    def failed_names(self) -> list[str]:
        """The name of each client in ``failures``."""
        return [self.name(partition) for partition in self.failures]

    @property
    def remarks(self) -> list[str]:
        """The end of a round's line in the log and on the terminal: the failed clients, and the notes."""
        failed = [f"failed: {listed(self.failed_names)}"] if self.failures else []
        return [*failed, *self.notes]

    def to_json(self) -> dict[str, object]:
        """Return the record as a dict for JSON."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def line(self) -> str:
        """Return the round's log line: clients by level, bytes sent to each client, bytes received, failures, notes."""
        levels, received = [], Counter(self.received_rates)
        for rate, clients in sorted(Counter(self.rates.values()).items(), reverse=True):
            sent = self.bytes_by_level.get(level_name(rate))
            each = "" if sent is None or not received[rate] else f"x{text.size(sent / received[rate])}"
            levels.append(f"{level_name(rate)} {clients}{each}")
        parts = [f"clients={self.answered}/{self.expected}", *levels]
        return "; ".join(
            [f"round {self.server_round}: {', '.join(parts)}", f"up {text.size(self.bytes_up)}", *self.remarks]
        )

    def log_metrics(self, num_rounds: int) -> None:
        """Log the metrics, then the duration. The last ``LogRecord`` has this object in its attribute ``round``."""
        place = f"[ROUND {self.server_round}/{num_rounds}]"
        for line in self.metrics_lines():
            host_log.info("%s %s", place, line)
        host_log.info("%s took %s", place, text.duration(self.seconds), extra={ROUND: self})

    def metrics_lines(self) -> Iterator[str]:
        """Yield a line of metrics, then a line for the model of each level.

        If not all clients evaluated the global model, the clients' evaluation metrics in the first line end with a
        remark such as ``(of 80% of the clients)``.
        """
        coverage = self.evaluate.get("coverage", 1.0)
        clients = {*self.evaluate_medians, WORST_ACCURACY} if coverage < 1 else ()
        if metrics := {**self.train, **self.evaluate}:
            yield _metrics_text(metrics, dict.fromkeys(clients, f" (of {coverage:.0%} of the clients)"))
        for level, values in self.evaluate_by_level.items():
            yield f"level {level}: {_metrics_text(values, {})}"

    def note_central(self, metrics: Mapping[str, object]) -> None:
        """Record the metrics of an evaluation on the server.

        A metric ``global-...`` replaces the clients' metric of the same name. Any other metric gets the prefix
        ``server-`` if clients report a metric of the same name.
        """
        clients = {name for name in (*self.train, *self.evaluate) if not name.startswith("global-")}
        numbers = self.note_computed(self.evaluate, server_names(metrics, clients))
        self.partial = tuple(name for name in self.partial if name not in numbers)

    def note_changed(self, means: dict[str, float], metrics: Mapping[str, object]) -> None:
        """Update ``means`` with the ``metrics`` that a subclass of the strategy changed or added."""
        changed = {name: value for name, value in metrics.items() if not _equal(means.get(name), value)}
        self.note_computed(means, changed)

    def note_computed(self, means: dict[str, float], computed: Mapping[str, object]) -> dict[str, float]:
        """Update ``means`` with the numbers in ``computed`` (a user's metrics); return these numbers as floats.

        The names of these numbers are removed from ``evaluate_medians``. If ``means`` is ``evaluate``, and
        ``few_answered`` is true, the names are added to ``partial``.
        """
        numbers = {name: float(value) for name, value in computed.items() if isinstance(value, int | float)}
        means |= numbers
        if means is self.evaluate and self.few_answered:
            self.partial = tuple(dict.fromkeys((*self.partial, *numbers)))
        self.evaluate_medians = {name: median for name, median in self.evaluate_medians.items() if name not in numbers}
        return numbers


def _equal(mean: float | None, value: object) -> bool:
    """Whether two numbers are equal, or both NaN."""
    return mean == value or (isinstance(value, float) and mean is not None and math.isnan(mean) and math.isnan(value))


def _metrics_text(metrics: Mapping[str, float], remarks: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value:.4g}{remarks.get(name, '')}" for name, value in metrics.items())


def check_metrics(metrics: object, whose: str) -> None:
    """Raise ``ConfigError`` if ``metrics`` is neither None nor a mapping to numbers and lists.

    ``whose`` is the name of the function that returned ``metrics``, for the error text.
    """
    if metrics is None:
        return
    if not isinstance(metrics, Mapping):
        raise ConfigError(f"{whose} returned {shown(metrics)}; expected a MetricRecord, or None")
    for name, value in metrics.items():
        if not isinstance(value, int | float | list):
            raise ConfigError(f"{whose} returned {shown(value)} as {name}; expected a number, such as float(x)")
