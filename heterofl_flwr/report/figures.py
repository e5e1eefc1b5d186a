"""The figures of a run, drawn from its records."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.common.errors import listed
from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import level_name
from heterofl_flwr.federation.client_metrics import HEADLINE_KINDS
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.report import summary
from heterofl_flwr.report.drawing import COLOURS, MOST_NAMES, add_legend, draw_matrix, new_axes, series
from heterofl_flwr.runs.class_counts import ClassCounts
from heterofl_flwr.runs.costs import ModelCosts, bytes_sent, full_bytes, savings
from heterofl_flwr.runs.metrics import points
from heterofl_flwr.runs.scores import SCOPES, USUAL, headline_kind, pick_metric

Points = tuple[Sequence[float], Sequence[float]]
Curves = Mapping[str, Points]
Band = tuple[Sequence[float], Sequence[float]]
"""The lowest and the highest value at each place of a curve."""

TIMES = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
FEW = 30  # curves with fewer points than this have a mark at each point
CLIMB = 4  # the first 1 / CLIMB of a curve does not count for the range of the axis
SHORT = 10  # curves with fewer points than this count completely for the range of the axis
NEAR = 0.25  # an axis is extended to values whose distance from its range is at most this fraction of the range
MOST_NUMBERS = 12  # maximum number of classes of a confusion matrix that has numbers in its entries
MOST_METRICS = 12  # maximum number of figures of a user's own metrics
LARGEST = 1e300  # larger values are left out, because matplotlib cannot draw their axis
ALIKE = 0.02  # curves that differ by less than this fraction of the axis are drawn as one

TEXTS = {
    "learning-curves": (
        "Learning curves",
        "The full model (with personal layers, each client's) on the test set, on each client's own (classes that it "
        "lacks masked by train.mask-fill), and the worst client's.",
    ),
    "levels": (
        "{kind} by level",
        "Each level's own model, cut from the global one (with personal layers, each client's).",
    ),
    "loss": ("Training loss", "Mean over the round's clients, weighted by examples."),
    "clients": (
        "Accuracies of clients",
        "Of the full model (with personal layers, each client's) on each client's own test set; a tenth of the clients "
        "is below the first decile.",
    ),
    "participation": ("Trainings of each client", "How often each client was asked to train, at which level."),
    "classes": ("Classes of each client", "Its training examples by class; where it has none, the figure is blank."),
    "confusion": ("Confusion matrix, round {round}", "Percent of each class's test examples; of the full model."),
    "time": ("Time of a round", "On the wall clock, with evaluation."),
    "bytes": ("Bytes sent", "Both ways."),
    "for-time": ("{kind} over simulated time", "Of training on the simulated devices; evaluation takes no time."),
}
"""Title and caption of each figure, in the order of the page; ``_remarks`` adds to captions."""


class Drawing(NamedTuple):
    """A figure with its file name, title and caption."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw_run(records: Sequence[RoundRecord], costs: ModelCosts | None, counts: ClassCounts) -> list[Drawing]:
    """Return all figures for which the records have values."""
    kind = headline_kind(records)
    rounds = [record.server_round for record in records]
    seconds = list(accumulate(record.simulated_seconds for record in records))
    unit, unit_name = next((time for time in TIMES if seconds and seconds[-1] >= 2 * time[0]), TIMES[-1])
    times = [total / unit for total in seconds]
    levels = {level: summary.level_points(records, level, kind) for level in summary.levels(records, costs).values()}
    drawn = {
        "learning-curves": draw_curves(_scopes(records, kind, rounds), kind),
        "levels": draw_curves(levels, kind),
        "loss": draw_curves(_losses(records, rounds), "loss"),
        "clients": draw_curves(_clients(records, rounds), "local accuracy"),
        "participation": _draw_participation(records),
        "classes": draw_matrix(np.array(counts.clients).T, "client", (), counts.names) if counts.clients else None,
        "confusion": _draw_confusion(counts),
        "time": draw_curves({"": (rounds, [record.seconds for record in records])}, "seconds"),
        "bytes": _draw_bytes(records, costs, rounds),
        "for-time": draw_curves(_scopes(records, kind, times), kind, f"simulated {unit_name}"),
    }
    remarks, drawings = _remarks(records, costs, counts), []
    for name, figure in drawn.items():
        title, caption = TEXTS[name]
        title = title.format(kind=kind.capitalize(), round=counts.server_round)
        drawings += [Drawing(name, title, caption + remarks.get(name, ""), figure)] if figure else []
    return drawings + list(_draw_users_metrics(records, rounds))


def _remarks(records: Sequence[RoundRecord], costs: ModelCosts | None, counts: ClassCounts) -> dict[str, str]:
    """Return what captions have only in some runs, by figure."""
    untested = [name for name, row in zip(counts.names, counts.confusion, strict=False) if not any(row)]
    return {
        "confusion": f" No test examples: {listed(untested)}." if untested else "",
        "bytes": " Beside it FedAvg with the full-size model on the same clients." if savings(records, costs) else "",
    }


def _draw_users_metrics(records: Sequence[RoundRecord], rounds: Sequence[int]) -> Iterator[Drawing]:
    """Yield a figure for each metric that a user's app adds, up to ``MOST_METRICS`` figures."""
    names = dict.fromkeys(name for record in records for name in record.evaluate if name not in USUAL)
    names |= dict.fromkeys(name for record in records for name in record.train if name not in HEADLINE_KINDS)
    caption = "A metric of this app; of clients' metrics, their mean."
    caption += f" The first {MOST_METRICS} of {len(names)} metrics." if len(names) > MOST_METRICS else ""
    for number, name in enumerate(list(names)[:MOST_METRICS], 1):
        curves = {
            "evaluation": points(rounds, [record.evaluate.get(name) for record in records]),
            "training": points(rounds, [record.train.get(name) for record in records]),
        }
        if figure := draw_curves(curves, name):
            yield Drawing(f"metric-{number}", name, caption, figure)


def _scopes(records: Sequence[RoundRecord], kind: str, spent: Sequence[float]) -> Curves:
    metrics = {scope: [record.evaluate.get(f"{scope}-{kind}") for record in records] for scope in SCOPES}
    return {scope: points(spent, values) for scope, values in metrics.items()} if any(spent) else {}


def _clients(records: Sequence[RoundRecord], rounds: Sequence[int]) -> Curves:
    """Return curves over rounds: the ninth decile, median and first decile of the clients' accuracies."""
    deciles = {"ninth decile": 8, "median": 4, "first decile": 0}
    values = [record.accuracy_deciles or (None,) * 9 for record in records]
    return {name: points(rounds, [of_round[index] for of_round in values]) for name, index in deciles.items()}


def _draw_participation(records: Sequence[RoundRecord]) -> Figure | None:
    trainings = Counter(training for record in records for training in record.rates.items())
    clients = sorted({number for client, _ in trainings for number in (client, client + 1)})
    if not clients:
        return None
    figure, axes = new_axes("client", "trainings")
    edges, bottom = np.array(clients) - 0.5, np.zeros(len(clients) - 1)
    for number, rate in enumerate(sorted({rate for _, rate in trainings}, reverse=True)):
        top = bottom + [trainings[client, rate] for client in clients[:-1]]  # 0 for clients that were not asked
        axes.stairs(top, edges, baseline=bottom, fill=True, color=series(number)[0], label=level_name(rate))
        bottom = top
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    add_legend(axes)
    return figure


def _draw_confusion(counts: ClassCounts) -> Figure | None:
    if not counts.confusion or len(counts.names) > MOST_NAMES:
        return None
    numbers = np.array(counts.confusion)  # (class, predicted class)
    percents = 100 * numbers / np.maximum(numbers.sum(axis=1, keepdims=True), 1)
    figure = draw_matrix(percents, "predicted class", counts.names, counts.names)
    for row, column in np.argwhere(percents >= 0.5) if len(numbers) <= MOST_NUMBERS else ():
        percent = percents[row, column]
        colour = "white" if percent > percents.max() / 2 else COLOURS["ink"]
        figure.axes[0].text(column, row, f"{percent:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return figure


def _losses(records: Sequence[RoundRecord], rounds: Sequence[int]) -> Curves:
    levels = sorted({level for record in records for level in record.train_by_level})
    by_level = {level: [record.train_by_level.get(level, {}) for record in records] for level in levels}
    by_level = by_level or {"all clients": [record.train for record in records]}
    return {
        level: points(rounds, [pick_metric(metrics, "loss") for metrics in means]) for level, means in by_level.items()
    }


def draw_curves(
    curves: Curves, ylabel: str, xlabel: str = "round", bands: Mapping[str, Band] | None = None
) -> Figure | None:
    """Return a figure of named curves over rounds or another quantity; None if no value can be drawn.

    The vertical axis may leave out a steep beginning. Around a curve, the band of its name is shaded. Without
    ``bands``, curves that look the same are drawn as one.
    """
    drawn = {
        name: (places, _drawable(values))
        for name, (places, values) in curves.items()
        if any(abs(value) < LARGEST for value in values)
    }
    if not drawn:
        return None
    shaded = {name: (_drawable(lows), _drawable(highs)) for name, (lows, highs) in (bands or {}).items()}
    low, high = _axis_range([*(values for _, values in drawn.values()), *chain(*shaded.values())])
    figure, axes = new_axes(xlabel, ylabel)
    shown = _join_alike(drawn, ALIKE * (high - low)) if bands is None else drawn
    for number, (name, (places, values)) in enumerate(shown.items()):
        colour, dash = series(number)
        mark = "o" if len(places) < FEW else ""
        axes.plot(places, values, dash, color=colour, label=name, marker=mark, markersize=3)
        if name in shaded:
            axes.fill_between(places, *shaded[name], color=colour, alpha=0.15, linewidth=0)
    room = 0.06 * (high - low) or 0.02 * abs(high) or 1
    axes.set_ylim(low - room, high + room)
    if ylabel.endswith("accuracy") and high <= 1:  # an app's own accuracy may be in percent already
        axes.set_ylim(top=min(high + room, 1.01))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02)
    add_legend(axes)
    return figure


def _drawable(values: Sequence[float]) -> list[float]:
    return [value if abs(value) < LARGEST else math.nan for value in values]


def _axis_range(curves: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Return the lower and the upper end of the vertical axis; the first quarter of a curve may lie outside."""
    late = (curve[len(curve) // CLIMB if len(curve) >= SHORT else 0 :] for curve in curves)
    settled = [value for curve in late for value in curve if not math.isnan(value)]
    numbers = settled or [value for curve in curves for value in curve if not math.isnan(value)]
    low, high = min(numbers), max(numbers)
    reach = NEAR * (high - low)
    shown = [value for curve in curves for value in curve if low - reach <= value <= high + reach]
    return min(shown), max(shown)


def _join_alike(curves: Curves, distance: float) -> Curves:
    """Merge curves that differ by at most ``distance``; join their names, as in ``global and local``."""

    def coincide(a: Points, b: Points) -> bool:
        return a[0] == b[0] and all(abs(y - z) <= distance for y, z in zip(a[1], b[1], strict=True))

    names: dict[str, list[str]] = {}
    for name, curve in curves.items():
        twin = next((drawn for drawn in names if coincide(curves[drawn], curve)), name)
        names.setdefault(twin, []).append(name)
    return {" and ".join(alike): curves[name] for name, alike in names.items()}


def _draw_bytes(records: Sequence[RoundRecord], costs: ModelCosts | None, rounds: Sequence[int]) -> Figure | None:
    curves: dict[str, Points] = {"this run": (rounds, list(accumulate(bytes_sent(records))))}
    if costs and savings(records, costs):
        curves["full-size FedAvg"] = rounds, list(accumulate(full_bytes(record, costs) for record in records))
    if figure := draw_curves(curves, "sent in total"):
        axes = figure.axes[0]
        axes.set_ylim(0, 1.05 * max(max(values) for _, values in curves.values()) or 1)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(formatting.size(value))))
    return figure
