"""What a strategy notes while a round runs, to become its record."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from heterofl_flwr.methods.callbacks import RoundRecord


@dataclass(slots=True)
class RoundLog:
    """What the strategy notes while a round runs."""

    learning_rate: float = 0.0
    rates: dict[int, float] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    train: Mapping[str, float] = field(default_factory=dict)
    train_by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    evaluate: dict[str, float] = field(default_factory=dict)
    evaluate_by_level: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0

    def record(self, server_round: int, seconds: float) -> RoundRecord:
        """Return the finished round's record."""
        return RoundRecord(
            server_round=server_round,
            seconds=seconds,
            learning_rate=self.learning_rate,
            rates=self.rates,
            failures=self.failures,
            train=self.train,
            train_by_level=self.train_by_level,
            evaluate=self.evaluate,
            evaluate_by_level=self.evaluate_by_level,
            bytes_down=self.bytes_down,
            bytes_up=self.bytes_up,
        )
