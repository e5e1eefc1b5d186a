"""What a strategy notes while a round runs, to become its record."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from heterofl_flwr.core import formatting as text
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.evaluation import weighted_means
from heterofl_flwr.federation.records import RoundRecord

NAMED = 5
"""Clients of a round that its line names."""

LEVELS = 5
"""Levels that it names."""

host_log = logging.getLogger("flwr")
"""Flower's own log, which shows wherever an app runs."""


def clients_by_level(rates: Mapping[int, float]) -> dict[str, list[int]]:
    """Return the clients of a round, by partition, of each level from the largest on."""
    found: dict[str, list[int]] = {}
    for partition, rate in sorted(rates.items(), key=lambda item: (-item[1], item[0])):
        found.setdefault(level_name(rate), []).append(partition)
    return found


def sent_to(clients: Collection[int], num_bytes: int | None) -> str:
    """Return how many clients of a level train and, where it is known, what each is sent, such as ``2x12.3 MB``."""
    return f"{len(clients)}" + ("" if num_bytes is None else f"x{text.size(num_bytes / len(clients))}")


@dataclass(slots=True)
class RoundLog:
    """What the strategy notes while a round runs."""

    learning_rate: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    train: dict[str, float] = field(default_factory=dict)
    train_by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluate: dict[str, float] = field(default_factory=dict)
    evaluate_by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluate_medians: dict[str, float] = field(default_factory=dict)
    worst_client: int | None = None
    evaluate_failures: dict[int, str] = field(default_factory=dict)
    evaluate_asked: int = 0
    evaluate_answers: int = 0
    partial: Sequence[str] = ()
    privacy: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    bytes_by_level: dict[str, int] = field(default_factory=dict)

    def note_training(self, answers: Sequence[tuple[float, float, Mapping[str, float]]]) -> None:
        """Note what clients report of their training: for each its rate, its number of examples and its metrics."""
        self.train = weighted_means([(number, metrics) for _, number, metrics in answers])
        self.train_by_level = {
            level_name(rate): weighted_means([(number, metrics) for own, number, metrics in answers if own == rate])
            for rate in sorted({rate for rate, _, _ in answers}, reverse=True)
        }

    def send(self, rate: float, num_bytes: int) -> None:
        """Note what goes to a client of a rate."""
        level = level_name(rate)
        self.bytes_down += num_bytes
        self.bytes_by_level[level] = self.bytes_by_level.get(level, 0) + num_bytes

    def line(self, server_round: int) -> str:
        """Return which sizes were trained, what travelled and how many failed, in one short line.

        Where few clients take part, they are named.
        """
        by_level = clients_by_level(self.rates)
        named = len(self.rates) <= NAMED
        levels = [
            f"{level} {sent_to(own, self.bytes_by_level.get(level))}"
            + (f" (client{'s' if len(own) > 1 else ''} {text.numbers(own)})" if named else "")
            for level, own in by_level.items()
        ]
        more = [f"{len(levels) - LEVELS} more levels"] if len(levels) > LEVELS else []
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"round {server_round}: {', '.join([*levels[:LEVELS], *more])}; up {text.size(self.bytes_up)}{failed}"

    def note_central(self, metrics: Mapping[str, float]) -> None:
        """Note what the server measured itself, which stands in place of what clients say under the same name."""
        self.note_computed(self.evaluate, metrics)
        self.partial = tuple(name for name in self.partial if name not in metrics)

    def note_computed(self, means: dict[str, float], found: Mapping[str, object]) -> None:
        """Put what was computed in another way in place of means, and of the medians beside them."""
        numbers = {name: float(value) for name, value in found.items() if isinstance(value, int | float)}
        means |= numbers
        self.evaluate_medians = {name: own for name, own in self.evaluate_medians.items() if name not in numbers}

    def record(self, server_round: int, seconds: float) -> RoundRecord:
        """Return the finished round's record."""
        return RoundRecord(
            server_round=server_round,
            seconds=seconds,
            learning_rate=self.learning_rate,
            rates=self.rates,
            failures=self.failures,
            refused=tuple(self.refused),
            train=self.train,
            train_by_level=self.train_by_level,
            evaluate=self.evaluate,
            evaluate_by_level=self.evaluate_by_level,
            evaluate_medians=self.evaluate_medians,
            worst_client=self.worst_client,
            evaluate_failures=self.evaluate_failures,
            evaluate_asked=self.evaluate_asked,
            evaluate_answers=self.evaluate_answers,
            partial=self.partial,
            privacy=self.privacy,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            bytes_by_level=self.bytes_by_level,
        )
