"""The numbers of a run that its tables, figures and page show, and the tables that end a run on the terminal."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.evaluation import is_share
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.runs import ModelCosts, seconds_to
from heterofl_flwr.runs.costs import savings
from heterofl_flwr.runs.metrics import headline, headline_kind, pick_metric, points, scores

REASONS = 3  # reasons of failures that the closing lines name
LONGEST = 60  # characters of a reason there

Cells = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A table as text: its heads and its rows."""


class OnDevices(NamedTuple):
    """Time and estimated energy of training on simulated devices, and the time until the headline metric was best."""

    seconds: float
    joules: float
    metric: str  # empty where no round was evaluated
    best_seconds: float


class Shell(NamedTuple):
    """Parameters of one level's model and not of the next smaller: holders, share of the model, share of clients."""

    holders: str
    share: float
    held: float


class FailureRow(NamedTuple):
    """A reason of failures: how often, in which rounds, at which clients."""

    reason: str
    times: int
    rounds: Sequence[int]
    clients: Sequence[int]


def levels(records: Sequence[RoundRecord], costs: ModelCosts | None) -> dict[float, str]:
    """Return the names of the levels by rate, from the largest to the smallest."""
    names = {rate: level_name(rate) for record in records for rate in record.rates.values()}
    names |= {cost.rate: cost.level for cost in (costs.levels if costs else ())}
    return dict(sorted(names.items(), reverse=True))


def level_points(records: Sequence[RoundRecord], level: str, kind: str) -> tuple[list[int], list[float]]:
    """Return the rounds in which a level's model was evaluated, and its metric of a kind."""
    return points(records, lambda record: pick_metric(record.evaluate_by_level.get(level, {}), kind))


def on_devices(records: Sequence[RoundRecord]) -> OnDevices | None:
    """Return time and energy of the run on its simulated devices; None where none are simulated."""
    seconds = math.fsum(record.simulated_seconds for record in records)
    joules = math.fsum(record.joules for record in records)
    if not seconds and not joules:
        return None
    name = next(filter(None, map(headline, records)), "")
    best = next((score.best for score in scores(records) if score.name == name), None)
    reached = None if best is None else seconds_to(records, name, best)
    return OnDevices(seconds, joules, "" if reached is None else name, reached or 0.0)


def shells(records: Sequence[RoundRecord], costs: ModelCosts | None) -> list[Shell]:
    """Return how often each share of the parameters was trained, from the outermost shell to the innermost.

    Levels are nested, as slices are prefixes, so a client of a rate holds the shells of its own rate and of all smaller
    ones. A client that failed held nothing.
    """
    rounds = [record for record in records if record.rates]
    if costs is None or not rounds:
        return []
    largest, *smaller = costs.levels
    found = []
    for cost, inner in zip(costs.levels, [*(cost.parameters for cost in smaller), 0], strict=True):
        held = [
            sum(rate >= cost.rate and client not in record.failures for client, rate in record.rates.items())
            / len(record.rates)
            for record in rounds
        ]
        holders = f"{largest.level} only" if cost is largest else f"{largest.level} to {cost.level}"
        found.append(Shell(holders, (cost.parameters - inner) / costs.full.parameters, math.fsum(held) / len(held)))
    return found


def failure_rows(records: Sequence[RoundRecord]) -> list[FailureRow]:
    """Return failures by reason, the most frequent first."""
    found: dict[str, list[tuple[int, int]]] = {}
    for record in records:
        for partition, reason in chain(record.failures.items(), record.evaluate_failures.items()):
            found.setdefault(reason, []).append((record.server_round, partition))
    rows = [
        FailureRow(reason, len(own), *(tuple(sorted(set(numbers))) for numbers in zip(*own, strict=True)))
        for reason, own in found.items()
    ]
    return sorted(rows, key=lambda row: -row.times)


def failure_lines(records: Sequence[RoundRecord]) -> list[str]:
    """Return the failures as short lines: how many in all, then the most frequent reasons."""
    rows = failure_rows(records)
    if not rows:
        return []
    asked = sum(len(record.rates) for record in records)
    failed = sum(len(record.failures) for record in records)
    evaluations = sum(len(record.evaluate_failures) for record in records)
    parts = [f"{failed} of {asked} trainings"] * bool(failed)
    parts += [f"{evaluations} evaluations or moments"] * bool(evaluations)
    lines = [f"failed: {', '.join(parts)}"]
    for row in rows[:REASONS]:
        rounds, clients = formatting.numbers(row.rounds, 3), formatting.numbers(row.clients, 4)
        # In one line and with both ends: what a program prints last is often why.
        reason, half = " ".join(row.reason.split()), LONGEST // 2
        short = reason if len(reason) <= LONGEST else f"{reason[:half]} ... {reason[-half:]}"
        lines.append(f"  {row.times} x in rounds {rounds}, clients {clients}: {short}")
    if rest := rows[REASONS:]:
        lines.append(f"  {sum(row.times for row in rest)} x for {len(rest)} other reasons")
    return lines


def partial_line(records: Sequence[RoundRecord]) -> str:
    """Return in which rounds too few clients evaluated; nothing where there are none."""
    few = [record for record in records if record.few_answered]
    if not few:
        return ""
    rounds = formatting.numbers([record.server_round for record in few], 4)
    return f"* fewer than half of the clients asked evaluated in rounds {rounds}: never the best"


def level_cells(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Cells:
    """Return the table of levels: cost of the model if known, share of the clients, and last score."""
    kind, known = headline_kind(records), costs.by_rate if costs else {}
    drawn = Counter(rate for record in records for rate in record.rates.values())
    few = {record.server_round for record in records if record.few_answered}
    rows = []
    for rate, level in levels(records, costs).items():
        rounds, values = level_points(records, level, kind)
        score = marked(formatting.score(kind, values[-1] if values else None), bool(few & set(rounds[-1:])))
        share = formatting.percent(drawn[rate] / (drawn.total() or 1))
        parameters = macs = size = formatting.NOTHING
        if cost := known.get(rate):
            parameters, macs = f"{cost.parameters:,}", formatting.count(cost.macs)
            size = formatting.size(2 * cost.bytes)
        rows.append([level, f"{rate:g}", parameters, macs, share, score, size])
    return ("level", "rate", "parameters", "MACs", "clients", kind, "bytes a round"), rows


def score_cells(records: Sequence[RoundRecord]) -> Cells:
    """Return the table of metrics: final value, best value and its round, in a row for each statistic of clients."""
    rows = []
    for score in scores(records):
        name = score.name if score.client is None else f"{score.name} (client {score.client})"
        found = {"": score.final} if score.median is None else {"mean": score.final, "median": score.median}
        compared = "median" if score.median is not None and not is_share(score.name) else next(iter(found))
        for statistic, final in found.items():
            best, best_round = (score.best, score.best_round) if statistic == compared else (None, None)
            shown = marked(formatting.score(score.name, final), score.partial)
            number = formatting.NOTHING if best_round is None else str(best_round)
            rows.append((name, statistic, shown, formatting.score(score.name, best), number))
    return ("metric", "of clients", "final", "best", "round"), rows


def marked(value: str, partial: bool) -> str:
    """Return a value as text, with a mark where too few clients gave it."""
    return f"{value} *" if partial else value


def summary_table(records: Sequence[RoundRecord], costs: ModelCosts | None = None) -> Group:
    """Return the tables that end a run: one row a level, then final and best of every metric, then the failures.

    What was saved follows and, where devices are simulated, time and energy on them.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        The history.
    costs : ModelCosts | None
        What the models cost, if it is known.
    """
    parts: list[Table | Text] = []
    for heads, rows in (level_cells(records, costs), score_cells(records)):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left")
        for cells in rows:
            table.add_row(*map(Text, cells))  # as it is: clients name metrics, and rich would read [..] as markup
        parts += [table] if rows or not parts else []
    lines = [partial_line(records), *failure_lines(records)]
    if saved := savings(records, costs):
        sent, full = formatting.size(saved.bytes_sent), formatting.size(saved.bytes_full)
        share, macs = formatting.percent(saved.bytes_share), formatting.percent(saved.macs_share)
        lines.append(
            f"against full-size FedAvg: {share} of the bytes ({sent} of {full}), {macs} of the multiplications"
        )
    if found := on_devices(records):
        best = f", best {found.metric} after {formatting.duration(found.best_seconds)}" if found.metric else ""
        times = f"{formatting.duration(found.seconds)} of training{best}"
        lines.append(f"on the simulated devices: {times}; energy, an estimate: {formatting.energy(found.joules)}")
    return Group(*parts, *(Text(line) for line in lines if line))
