"""What a strategy notes while a round runs, to become its record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from heterofl_flwr.core.levels import level_name
from heterofl_flwr.methods.callbacks import RoundRecord
from heterofl_flwr.methods.evaluation import weighted_means


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
    evaluate_failures: dict[int, str] = field(default_factory=dict)
    evaluate_asked: int = 0
    evaluate_answers: int = 0
    partial: Sequence[str] = ()
    privacy: Mapping[str, float] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0
    simulated_seconds: float = 0.0
    joules: float = 0.0

    def note_training(self, answers: Sequence[tuple[float, float, Mapping[str, float]]]) -> None:
        """Note what clients report of their training: for each its rate, its number of examples and its metrics."""
        self.train = weighted_means([(number, metrics) for _, number, metrics in answers])
        self.train_by_level = {
            level_name(rate): weighted_means([(number, metrics) for own, number, metrics in answers if own == rate])
            for rate in sorted({rate for rate, _, _ in answers}, reverse=True)
        }

    def note_central(self, metrics: Mapping[str, float]) -> None:
        """Note what the server measured itself, which stands in place of what clients say under the same name."""
        self.evaluate |= metrics
        self.partial = tuple(name for name in self.partial if name not in metrics)

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
            evaluate_failures=self.evaluate_failures,
            evaluate_asked=self.evaluate_asked,
            evaluate_answers=self.evaluate_answers,
            partial=self.partial,
            privacy=self.privacy,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
            simulated_seconds=self.simulated_seconds,
            joules=self.joules,
        )
