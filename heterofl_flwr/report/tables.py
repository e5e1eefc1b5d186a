"""What a run amounts to, as tables for the terminal."""

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report.summary import LevelRow, failure_lines, level_rows, on_devices, partial_line, savings
from heterofl_flwr.runs.costs import ModelCosts
from heterofl_flwr.runs.metrics import headline_kind, scores


def summary_table(records: Sequence[RoundRecord], costs: ModelCosts | None = None) -> Group:
    """Return the tables that end a run: one row a level, then final and best of every metric, then who failed.

    What was saved follows and, where devices are simulated, time and energy on them.

    Parameters
    ----------
    records : Sequence[RoundRecord]
        The history.
    costs : ModelCosts | None
        What the models cost, if it is known.
    """
    parts: list[Table | Text] = [_levels(records, costs)]
    if scores(records):
        parts.append(_scores(records))
    parts += [Text(line) for line in (partial_line(records), *failure_lines(records)) if line]
    saved = savings(records, costs)
    if saved:
        against = (
            f"against full-size FedAvg: {formatting.percent(saved.bytes_share)} of the bytes "
            f"({formatting.size(saved.bytes_sent)} of {formatting.size(saved.bytes_full)}), "
            f"{formatting.percent(saved.macs_share)} of the multiplications"
        )
        parts.append(Text(against))
    found = on_devices(records)
    if found:
        best = f", best {found.metric} after {formatting.duration(found.best_seconds)}" if found.metric else ""
        energy = formatting.energy(found.joules)
        times = f"{formatting.duration(found.seconds)} of training{best}; energy, an estimate: {energy}"
        parts.append(Text(f"on the simulated devices: {times}"))
    return Group(*parts)


def level_cells(row: LevelRow, kind: str) -> tuple[str, ...]:
    """Return a level's row as text, for ``level_heads``."""
    cost = row.cost
    return (
        row.level,
        f"{row.rate:g}",
        f"{cost.parameters:,}" if cost else formatting.NOTHING,
        formatting.count(cost.macs) if cost else formatting.NOTHING,
        formatting.percent(row.share),
        marked(formatting.score(kind, row.score), row.partial),
        formatting.size(2 * cost.bytes) if cost else formatting.NOTHING,
    )


def level_heads(kind: str) -> tuple[str, ...]:
    """Return the heads of ``level_cells``."""
    return ("level", "rate", "parameters", "MACs", "clients", kind, "bytes a round")


SCORE_HEADS = ("metric", "final", "median", "best", "round")
"""The heads of ``score_cells``."""


def score_cells(records: Sequence[RoundRecord]) -> list[tuple[str, ...]]:
    """Return each metric of evaluation: its final value, that of the median client, its best and when, as text."""
    return [
        (
            score.name if score.client is None else f"{score.name} (client {score.client})",
            marked(formatting.score(score.name, score.final), score.partial),
            formatting.score(score.name, score.median),
            formatting.score(score.name, score.best),
            formatting.NOTHING if score.best_round is None else str(score.best_round),
        )
        for score in scores(records)
    ]


def marked(value: str, partial: bool) -> str:
    """Return a value as text, with a mark where it is one of too few clients."""
    return f"{value} *" if partial else value


def _levels(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Table:
    kind = headline_kind(records)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(level_heads(kind)):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in level_rows(records, costs):
        table.add_row(*level_cells(row, kind))
    return table


def _scores(records: Sequence[RoundRecord]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, head in enumerate(SCORE_HEADS):
        table.add_column(head, justify="left" if number == 0 else "right")
    for cells in score_cells(records):
        table.add_row(*map(Text, cells))  # as it is: clients name metrics, and rich would read [..] in a name as markup
    return table
