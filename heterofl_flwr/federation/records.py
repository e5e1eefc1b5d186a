"""The record of a round, the state of a run after it, and the callbacks that get both."""

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from reprlib import repr as shown

from torch import Tensor

from heterofl_flwr.common.errors import ConfigError, listed
from heterofl_flwr.core import formatting as text
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.evaluation import WORST_ACCURACY, is_share

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
    notes: tuple[str, ...] = ()
    refused: tuple[int, ...] = ()
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
