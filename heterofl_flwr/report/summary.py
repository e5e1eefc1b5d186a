"""Tables and summary of a run."""

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from heterofl_flwr.common.errors import counted, printable, short
from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.core.mix import Mix
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.nn.inner_widths import InnerWidths
from heterofl_flwr.runs.class_counts import ClassCounts
from heterofl_flwr.runs.costs import ModelCosts, price, savings
from heterofl_flwr.runs.metrics import points
from heterofl_flwr.runs.scores import USUAL, find_metric, headline, headline_kind, pick_metric, scores, seconds_to
from heterofl_flwr.stages.privacy_accountant import KINDS

LONGEST = 100  # characters of a failure's reason
ACCOUNTANT = {"epsilon", "delta", *KINDS}  # metrics of the accountant of privacy
MOST_PAIRS = 20  # rows of the table of confused classes

Cells = tuple[Sequence[str], Sequence[Sequence[str]]]
"""A table as text: column heads and rows."""


def levels(records: Sequence[RoundRecord], costs: ModelCosts | None) -> dict[float, str]:
    """Return the names of all levels of a run by rate, the largest rate first."""
    names = {rate: level_name(rate) for rate in {rate for record in records for rate in record.rates.values()}}
    names |= {cost.rate: cost.level for cost in (costs.levels if costs else ())}
    return dict(sorted(names.items(), reverse=True))


def level_points(records: Sequence[RoundRecord], level: str, kind: str) -> tuple[list[float], list[float]]:
    """Return the curve of the metric ``kind`` at a level: rounds, and values."""
    values = [pick_metric(record.evaluate_by_level.get(level, {}), kind) for record in records]
    return points([record.server_round for record in records], values)


def price_text(mix: Mix, records: Sequence[RoundRecord], costs: ModelCosts | None, widths: InnerWidths) -> str:
    """Return the price of a mix (``runs.costs.price``) as text; '' if it is unknown, or if the mix has one level."""
    rates = [rate for record in records for rate in record.received_rates]
    if len(mix.rates) < 2 or not rates or costs is None or not {*rates, *mix.rates} <= costs.by_rate.keys():
        return ""
    by_rate = {rate: (cost.bytes, cost.macs) for rate, cost in costs.by_rate.items()}
    return " / ".join(f"{share:.2f}" for share in price(mix, rates, by_rate, widths))


def failure_cells(records: Sequence[RoundRecord]) -> Cells:
    """Return the table of failures by reason; a client without a name is listed by its partition."""
    by_reason: dict[str, list[tuple[int, int, str]]] = {}
    for record in records:
        for partition, reason in chain(record.failures.items(), record.evaluate_failures.items()):
            # Shortened in the middle, because a program often prints the cause at the end.
            line = short(" ".join(reason.split()), LONGEST)
            # In a later round, the partition may belong to another node.
            by_reason.setdefault(line, []).append((partition, record.server_round, record.names.get(partition, "")))
    rows = []
    for reason, cases in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        rounds = sorted({server_round for _, server_round, _ in cases})
        known = dict.fromkeys(name for *_, name in sorted(cases) if name)
        rest = sorted({partition for partition, _, name in cases if not name})
        who = ", ".join([*known, *([formatting.numbers(rest)] if rest else [])])
        rows.append((reason, str(len(cases)), formatting.numbers(rounds), who))
    return ("failure", "times", "rounds", "clients"), rows


def level_cells(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Cells:
    """Return the table of levels: size, share of trainings, latest metrics, and mean bytes sent to a client."""
    kind, by_rate = headline_kind(records), costs.by_rate if costs else {}
    drawn = Counter(rate for record in records for rate in record.rates.values())
    received, down = Counter[float](), Counter[str]()
    for record in records:
        received.update(record.received_rates)
        down.update(record.bytes_by_level)
    few = {record.server_round for record in records if record.few_answered}
    last = next((record for record in reversed(records) if record.evaluate_by_level), None)
    latest, evaluated = (last.evaluate_by_level, last.server_round) if last else ({}, 0)
    added = [
        name for metrics in latest.values() for name in metrics if name not in (*USUAL, find_metric(metrics, kind))
    ]
    names = {
        name: formatting.score_name(name, (metrics.get(name) for metrics in latest.values()))
        for name in dict.fromkeys(added)
    }
    curves = {level: level_points(records, level, kind) for level in levels(records, costs).values()}
    kind_name = formatting.score_name(kind, chain.from_iterable(values for _, values in curves.values()))
    main = [kind] if not names or any(values for _, values in curves.values()) else []  # a regression may have none
    rows = []
    for rate, level in levels(records, costs).items():
        rounds, values = curves[level]
        older = f" (round {rounds[-1]})" if rounds and rounds[-1] < evaluated else ""
        final = formatting.score(kind_name, values[-1] if values else None)
        score = [marked(final + older, bool(few & set(rounds[-1:])))] if main else []
        share = formatting.percent(drawn[rate] / (drawn.total() or 1))
        parameters = macs = formatting.NOTHING
        if cost := by_rate.get(rate):
            parameters, macs = f"{cost.parameters:,}", formatting.count(cost.macs)
        size = formatting.size(down[level] / received[rate]) if received[rate] and level in down else formatting.NOTHING
        metrics = latest.get(level, {})
        scores_added = [
            marked(formatting.score(shown, metrics.get(name)), name in metrics and evaluated in few)
            for name, shown in names.items()
        ]
        rows.append([level, f"{rate:g}", parameters, macs, share, *score, *scores_added, size])
    return ("level", "rate", "parameters", "MACs", "clients", *main, *names, "bytes down"), rows


def score_cells(records: Sequence[RoundRecord]) -> Cells:
    """Return the table of metrics, with columns for the final value, the best value, and the best value's round.

    A metric that clients report has two rows, for its mean and its median over the clients. Only the one of them that
    compares rounds has a best value.
    """
    rows = []
    evaluated = max((record.server_round for record in records if record.evaluate), default=0)
    for score in scores(records):
        older = f" (round {score.final_round})" if score.final_round < evaluated else ""
        name = score.name if score.client is None else f"{score.name} (client {score.client})"
        metric = formatting.score_name(score.name, [*score.finals.values(), score.best])
        for statistic, final in score.finals.items():
            best, best_round = (score.best, score.best_round) if statistic == score.statistic else (None, None)
            shown = marked(formatting.score(metric, final) + older, score.partial)
            number = formatting.NOTHING if best_round is None else str(best_round)
            rows.append((name, statistic, shown, formatting.score(metric, best), number))
    return ("metric", "of clients", "final", "best", "round"), rows


def confusion_cells(counts: ClassCounts) -> Cells:
    """Return the table of the most frequent confusions of two classes."""
    sizes = [sum(row) for row in counts.confusion]
    pairs = [
        (number, true, predicted)
        for true, row in enumerate(counts.confusion)
        for predicted, number in enumerate(row)
        if number and true != predicted
    ]
    rows = [
        (counts.names[true], counts.names[predicted], str(number), formatting.percent(number / sizes[true]))
        for number, true, predicted in heapq.nlargest(MOST_PAIRS, pairs, key=lambda pair: pair[0])
    ]
    return ("class", "predicted as", "test examples", "of the class"), rows


def marked(value: str, partial: bool) -> str:
    """Return ``value``, with a star if ``partial`` is True: too few clients evaluated."""
    return f"{value} *" if partial else value


def summary_lines(
    records: Sequence[RoundRecord], costs: ModelCosts | None, settings: Mapping[str, object] = MappingProxyType({})
) -> Iterator[str]:
    """Yield lines on a run, such as its time, failures, savings against FedAvg, and privacy."""
    if few := [record.server_round for record in records if record.few_answered]:
        rounds = formatting.numbers(few, 4)
        yield f"* fewer than half of the clients asked evaluated in rounds {rounds}: never the best"
    trainings, failed = sum(len(record.rates) for record in records), sum(len(record.failures) for record in records)
    if records:
        seconds = math.fsum(record.seconds for record in records)
        clients, mean = counted(f"{trainings / len(records):.4g}", "client"), seconds / len(records)
        each = f"{clients} and {formatting.duration(mean)}"
        yield f"{formatting.duration(seconds)}, {each} a round; {failed} of {counted(trainings, 'training')} failed"
    if saved := savings(records, costs, settings):
        sent, full_size = formatting.size(saved.bytes_sent), formatting.size(saved.bytes_full)
        share, macs = formatting.percent(saved.bytes_share), formatting.percent(saved.macs_share)
        yield f"against full-size FedAvg: {share} of the bytes ({sent} of {full_size}), {macs} of the multiplications"
    seconds = math.fsum(record.simulated_seconds for record in records)
    joules = math.fsum(record.joules for record in records)
    if seconds or joules:
        name = headline(records)
        best = next((score.best for score in scores(records) if score.name == name), None)
        reached = None if best is None else seconds_to(records, name, best)
        after = "" if reached is None else f", best {name} after {formatting.duration(reached)}"
        times = f"{formatting.duration(seconds)} of training{after}"
        yield f"on the simulated devices: {times}; energy, an estimate: {formatting.energy(joules)}"
    stages = records[-1].stages if records else {}
    accountant = ACCOUNTANT if {"epsilon", "delta"} <= stages.keys() else ()  # a user's stage may have an epsilon too
    if metrics := [f"{name} {formatting.number(stages[name])}" for name in stages if name not in accountant]:
        yield f"stages after the last round: {', '.join(metrics)}"
    if accountant:
        spent = f"epsilon {stages['epsilon']:.3g} at delta {stages['delta']:g}"
        yield f"each client's privacy after round {records[-1].server_round}: {spent}"


def summary_table(
    records: Sequence[RoundRecord],
    costs: ModelCosts | None = None,
    settings: Mapping[str, object] = MappingProxyType({}),
) -> Group:
    """Return the summary of a run: tables of levels, metrics and failures, and a few lines.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        The history.
    costs : ModelCosts | None
        Costs of the models; None if they are unknown.
    settings : Mapping[str, object]
        The run's settings. With ``train.distill``, multiplications include smaller models inside clients' models.
    """
    parts: list[Table | Text] = []
    for heads, rows in (level_cells(records, costs), score_cells(records), failure_cells(records)):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number else "left", overflow="fold")
        for cells in rows:
            # Clients name metrics, and rich would read [..] in a str as markup.
            table.add_row(*(Text(printable(cell)) for cell in cells))
        parts += [table] if rows or not parts else []
    return Group(*parts, *(Text(printable(line)) for line in summary_lines(records, costs, settings)))
