"""What a run amounts to, in plain numbers: the tables, the figures and the page all show these."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.runs.costs import LevelCost, ModelCosts
from heterofl_flwr.runs.metrics import headline, headline_kind, of_level, points, scores, seconds_to

REASONS = 3
"""Reasons of failures that the closing table names."""

LONGEST = 60
"""Letters of a reason there."""


@dataclass(frozen=True, slots=True)
class LevelRow:
    """One level of a run: its cost if known, its share of the clients, and its model's last score.

    ``partial`` says that the score is one of too few clients.
    """

    level: str
    rate: float
    cost: LevelCost | None
    share: float
    score: float | None
    partial: bool


@dataclass(frozen=True, slots=True)
class Savings:
    """What a run sent and computed, against FedAvg with the global model on the same clients.

    Attributes
    ----------
    bytes_sent, bytes_full
        Both ways, over all rounds: what was sent, and what FedAvg would have sent, to and from the same clients.
    macs_share
        Multiplications of this run over those of FedAvg, where every client has equally many samples.
    """

    bytes_sent: int
    bytes_full: int
    macs_share: float

    @property
    def bytes_share(self) -> float:
        """Bytes of this run over those of FedAvg."""
        return self.bytes_sent / self.bytes_full if self.bytes_full else math.nan


@dataclass(frozen=True, slots=True)
class OnDevices:
    """What training takes on the simulated devices.

    Attributes
    ----------
    seconds, joules
        Of all rounds; the energy is an estimate.
    metric
        By what the run is judged; empty where no round was evaluated.
    best_seconds
        After how many of these seconds the metric was first at its best.
    """

    seconds: float
    joules: float
    metric: str
    best_seconds: float


@dataclass(frozen=True, slots=True)
class Shell:
    """The parameters that a level's model has and the next smaller one has not.

    Attributes
    ----------
    levels
        The levels whose models hold the shell, from the largest to the smallest.
    share
        Its share of the global model's parameters.
    held
        The mean over rounds of the share of the round's clients that held it.
    idle
        The share of rounds in which no client held it, so that it kept its values.
    """

    levels: tuple[str, ...]
    share: float
    held: float
    idle: float


@dataclass(frozen=True, slots=True)
class FailureRow:
    """One reason of failures: how often, in which rounds, at which clients."""

    reason: str
    times: int
    rounds: tuple[int, ...]
    clients: tuple[int, ...]


def level_rows(records: Sequence[RoundRecord], costs: ModelCosts | None) -> list[LevelRow]:
    """Return one row a level, from the largest to the smallest."""
    drawn = Counter(rate for record in records for rate in record.rates.values())
    known = costs.by_rate if costs else {}
    kind = headline_kind(records)
    rows = []
    for rate in sorted({*drawn, *known}, reverse=True):
        level = known[rate].level if rate in known else level_name(rate)
        rounds, score = level_points(records, level, kind)
        share = drawn[rate] / drawn.total() if drawn else 0.0
        partial = any(record.few_answered for record in records if record.server_round in rounds[-1:])
        rows.append(LevelRow(level, rate, known.get(rate), share, score[-1] if score else None, partial))
    return rows


def level_points(records: Sequence[RoundRecord], level: str, kind: str) -> tuple[list[int], list[float]]:
    """Return the rounds in which a level's model was evaluated, and its metric of a kind."""
    return points(records, lambda record: of_level(record.evaluate_by_level.get(level, {}), kind))


def savings(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Savings | None:
    """Return what the run saved; None where a rate's cost is not known, or there were no clients."""
    rates = [rate for record in records for rate in record.rates.values()]
    if costs is None or not rates or not set(rates) <= set(costs.by_rate):
        return None
    full = sum(full_bytes(record, costs) for record in records)
    sent = sum(record.bytes_down + record.bytes_up for record in records)
    return Savings(sent, full, sum(costs.by_rate[rate].macs for rate in rates) / (costs.full.macs * len(rates) or 1))


def on_devices(records: Sequence[RoundRecord]) -> OnDevices | None:
    """Return what the run takes on its simulated devices; None where none are simulated."""
    seconds = math.fsum(record.simulated_seconds for record in records)
    joules = math.fsum(record.joules for record in records)
    if not seconds and not joules:
        return None
    names = [name for record in records if (name := headline(record))]
    best = next((score.best for score in scores(records) if names and score.name == names[0]), None)
    reached = seconds_to(records, names[0], best) if best is not None else None
    return OnDevices(seconds, joules, names[0] if reached is not None else "", reached or 0.0)


def full_bytes(record: RoundRecord, costs: ModelCosts) -> int:
    """Return what FedAvg with the global model would have sent in a round, both ways."""
    answered = sum(partition not in record.failures for partition in record.rates)
    return costs.full.bytes * (len(record.rates) + answered)


def macs_shares(records: Sequence[RoundRecord], costs: ModelCosts) -> tuple[list[int], list[float]]:
    """Return, for each round, its clients' mean multiplications over those of the global model."""
    full = costs.full.macs or 1

    def share(record: RoundRecord) -> float | None:
        known = [costs.by_rate[rate].macs / full for rate in record.rates.values() if rate in costs.by_rate]
        return math.fsum(known) / len(known) if known else None

    return points(records, share)


def shells(records: Sequence[RoundRecord], costs: ModelCosts | None) -> list[Shell]:
    """Return how often each share of the parameters was trained, from the outermost shell to the innermost.

    Levels are nested, so a client of a rate holds the shells of its own rate and of all smaller ones. A client that
    failed held nothing.
    """
    rounds = [_rates_that_answered(record) for record in records if record.rates]
    if costs is None or not rounds:
        return []
    found = []
    inner = [*(cost.parameters for cost in costs.levels[1:]), 0]
    for number, cost in enumerate(costs.levels):
        held = [sum(rate >= cost.rate for rate in rates) for rates, _ in rounds]
        shares = [count / asked for count, (_, asked) in zip(held, rounds, strict=True)]
        share = (cost.parameters - inner[number]) / costs.full.parameters
        names = tuple(own.level for own in costs.levels[: number + 1])
        found.append(Shell(names, share, math.fsum(shares) / len(shares), held.count(0) / len(held)))
    return found


def failure_rows(records: Sequence[RoundRecord]) -> list[FailureRow]:
    """Return failures by reason, the most frequent first."""
    found: dict[str, list[tuple[int, int]]] = {}
    for record in records:
        for partition, reason in chain(record.failures.items(), record.evaluate_failures.items()):
            found.setdefault(reason, []).append((record.server_round, partition))
    rows = [
        FailureRow(reason, len(own), tuple(sorted({n for n, _ in own})), tuple(sorted({p for _, p in own})))
        for reason, own in found.items()
    ]
    return sorted(rows, key=lambda row: -row.times)


def failure_lines(records: Sequence[RoundRecord]) -> list[str]:
    """Return who failed as short lines: how often in all, then the most frequent reasons, then who else."""
    rows = failure_rows(records)
    if not rows:
        return []
    asked = sum(len(record.rates) for record in records)
    failed = sum(len(record.failures) for record in records)
    judging = sum(len(record.evaluate_failures) for record in records)
    head = [f"{failed} of {asked} trainings"] * bool(failed) + [f"{judging} evaluations or moments"] * bool(judging)
    lines = [f"failed: {', '.join(head)}"]
    lines += [f"  {row.times} x {_where(row.rounds, row.clients)}: {_brief(row.reason)}" for row in rows[:REASONS]]
    if rest := rows[REASONS:]:
        rounds = sorted({number for row in rest for number in row.rounds})
        clients = sorted({partition for row in rest for partition in row.clients})
        lines.append(f"  {sum(row.times for row in rest)} x {_where(rounds, clients)}: {len(rest)} other reasons")
    return lines


def partial_line(records: Sequence[RoundRecord]) -> str:
    """Return in which rounds too few clients evaluated; nothing where there are none."""
    few = [record for record in records if record.few_answered]
    if not few:
        return ""
    worst = min(few, key=lambda record: record.evaluate_answers / record.evaluate_asked)
    rounds = formatting.numbers([record.server_round for record in few], 4)
    return (
        f"* fewer than half of the clients asked evaluated in rounds {rounds} (at worst {worst.evaluate_answers} of "
        f"{worst.evaluate_asked}): never the best"
    )


def _where(rounds: Sequence[int], clients: Sequence[int]) -> str:
    return f"in rounds {formatting.numbers(rounds, 3)}, clients {formatting.numbers(clients, 4)}"


def _brief(reason: str) -> str:
    """Return both ends of a reason in one line: what a program says last is often why."""
    line = " ".join(reason.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}"


def _rates_that_answered(record: RoundRecord) -> tuple[list[float], int]:
    rates = [rate for partition, rate in record.rates.items() if partition not in record.failures]
    return rates, len(record.rates)
