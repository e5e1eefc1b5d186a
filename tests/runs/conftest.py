"""A synthetic run with the shape of a real one: dynamic levels, evaluation every few rounds, a few failures."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.callbacks import Progress, RoundCallback
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn.models import build_model
from heterofl_flwr.report import Costs, RunFolder

MIX = Mix.parse("a1-b1-c1-d1-e1")
SIZES = {rate: 4 * round(98_922 * rate**2) for rate in MIX.rates}
REASONS = ("CUDA out of memory", "reply refused: parameter linear.weight is (10, 3), expected (10, 4)")


def make_record(number: int, *, every: int = 1) -> RoundRecord:
    """Return the record of one round; always the same for the same number."""
    rates = {partition: MIX.rates[partition * number % 5] for partition in range(number % 3, 20, 2)}
    failures = {min(rates): REASONS[number % 2]} if number % 7 == 3 else {}
    good = 0.85 - 0.8 * math.exp(-number / 25) + 0.02 * (number % 3)
    sent = sum(SIZES[rate] for rate in rates.values())
    record = RoundRecord(
        server_round=number,
        seconds=3.1 + number / 100,
        learning_rate=0.1 if number < 60 else 0.01,
        rates=rates,
        failures=failures,
        train={"loss": 1 - good, "accuracy": good},
        train_by_level={letter: {"loss": 1 - good + 0.05 * step} for step, letter in enumerate("abcde")},
        bytes_down=sent,
        bytes_up=sent - sum(SIZES[rates[partition]] for partition in failures),
    )
    if number % every == 0:
        record.evaluate = {"global-accuracy": good, "global-loss": 2.3 * (1 - good), "local-accuracy": good + 0.05}
        record.evaluate |= {"worst-accuracy": max(0.0, good - 0.2), "coverage": 0.4}
        record.evaluate_by_level = {own: {"global-accuracy": good - 0.01 * step} for step, own in enumerate("abcde")}
        record.evaluate_medians, record.worst_client = {"global-accuracy": good}, 7
    return record


@pytest.fixture
def record() -> Callable[..., RoundRecord]:
    return make_record


@pytest.fixture
def records() -> list[RoundRecord]:
    return [make_record(number, every=2) for number in range(1, 41)]


@pytest.fixture
def simulated(records) -> list[RoundRecord]:
    """Return the records of a run whose rounds take 90 s and 1,500 J each on their devices."""
    return [replace(record, simulated_seconds=90.0, joules=1500.0) for record in records]


@pytest.fixture(scope="session")
def build() -> Callable[[float], nn.Module]:
    return build_model("cnn", channels=1, hidden=(8, 16, 32))


@pytest.fixture(scope="session")
def costs(build) -> Costs:
    return Costs(build, MIX, torch.zeros(1, 1, 8, 8))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(tmp_path / "run")


class Fake:
    """A run without learning: its state after a round is a function of the round."""

    def __init__(self, build: Callable[[float], nn.Module]) -> None:
        self._shapes = {name: value.shape for name, value in build(1.0).named_parameters()}

    def state(self, number: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(number)
        return {name: torch.randn(shape, generator=generator) for name, shape in self._shapes.items()}

    def progress(self, number: int, num_rounds: int, **changes: object) -> Progress:
        record = replace(make_record(number, every=2), **changes)
        moments = {
            f"{rate}/fixed.bn.{part}": value
            for rate, shift in ((1.0, 0), (0.5, 100))
            for part, value in (
                ("count", torch.tensor(4)),
                ("first", torch.full((2,), float(number + shift), dtype=torch.float64)),
                ("second", torch.full((2,), 9.0, dtype=torch.float64)),
            )
        }
        return Progress(
            server_round=number,
            record=record,
            state=self.state(number),
            evaluated=self.state(number),
            moments=moments,
            stages={"velocity": torch.tensor(float(number))},
            num_rounds=num_rounds,
        )

    def run(self, callbacks: list[RoundCallback], first: int, last: int, *, dies_after: int | None = None) -> int:
        """Run rounds as a strategy does and return the last one; a run that dies never ends."""
        for callback in callbacks:
            callback.on_start(first, last, self.state(first - 1))
        number = first - 1
        for number in range(first, last + 1):
            stops = [callback.on_round_end(self.progress(number, last)) for callback in callbacks]
            if number == dies_after:
                return number
            if any(stops):
                break
        for callback in callbacks:
            callback.on_end(self.state(number))
        return number


@pytest.fixture(scope="session")
def fake(build) -> Fake:
    return Fake(build)
