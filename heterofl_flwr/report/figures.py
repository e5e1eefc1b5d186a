"""The figures of a run, drawn from its records alone."""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report import summary
from heterofl_flwr.report.drawing import SMALL, add_legend, light, new_axes, series
from heterofl_flwr.runs import ModelCosts
from heterofl_flwr.runs.metrics import SCOPES, headline_kind, pick_metric, points

Points = tuple[Sequence[float], Sequence[float]]
Label = Callable[[float], str]
Style = tuple[int, float]  # the number of a series' colour, and the width of its line

# Lines of equal values lie on one another, so each is narrower than the one below it.
SCOPE_STYLES: Sequence[Style] = ((0, 3.6), (1, 1.8), (4, 1.0))
TIMES = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
PERCENT = PercentFormatter(1.0, 0, " %")
FEW = 30  # with fewer points than this, each is marked

TEXTS = {
    "learning-curves": (
        "Learning curves",
        "Global: the full model on the whole test set. Local: the full model on each client's own test data, "
        "limited to its classes. Worst: the client with the lowest value.",
    ),
    "levels": ("{kind} by level", "Each level's own model, cut from the global one."),
    "loss": ("Training loss", "Mean over the round's clients, weighted by samples."),
    "bytes": (
        "Bytes sent",
        "Both ways, summed over rounds, beside FedAvg with the full-size model on the same clients.",
    ),
    "for-bytes": ("{kind} for bytes", "What each byte bought: the metric over all that was sent by then."),
    "for-time": (
        "{kind} over simulated time",
        "Training as long as it would take on the simulated devices; evaluation takes no time.",
    ),
    "for-energy": (
        "{kind} for energy, an estimate",
        "What training would cost all simulated devices together by their profiles, wasted work included.",
    ),
    "multiplications": (
        "Multiplications",
        "Per client and sample, as a share of what the full-size model needs; dashed: the mean.",
    ),
    "trained": (
        "How often each share of the parameters was trained",
        "Smaller models are nested in larger ones. Each bar is a part of the global model: who holds it, how large "
        "it is, and the mean share of a round's clients that trained it.",
    ),
    "time": ("Time a round", "Wall-clock time, evaluation included."),
}
"""For each figure, in the order of the page: its title, and a sentence that says how to read it."""


class Drawing(NamedTuple):
    """A figure with its file name, its title and a sentence that says how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw_run(records: Sequence[RoundRecord], costs: ModelCosts | None, *, nested: bool = True) -> list[Drawing]:
    """Return every figure for which the records hold something.

    Slices that move are not ``nested``: of which parameters were trained how often, nothing is drawn then.
    """
    kind = headline_kind(records)
    rounds = [record.server_round for record in records]
    sent = list(accumulate(summary.bytes_sent(records)))
    joules = list(accumulate(record.joules for record in records))
    seconds = list(accumulate(record.simulated_seconds for record in records))
    unit, unit_name = next((time for time in TIMES if seconds and seconds[-1] >= 2 * time[0]), TIMES[-1])
    times = [total / unit for total in seconds]
    levels = [(level, summary.level_points(records, level, kind)) for level in summary.levels(records, costs).values()]
    found = {
        "learning-curves": _draw_scopes(records, kind, rounds, "round"),
        "levels": _draw_curves(levels, kind),
        "loss": _draw_losses(records),
        "bytes": _draw_bytes(records, costs, sent),
        "for-bytes": _draw_scopes(records, kind, sent, "sent in total", formatting.size),
        "for-time": _draw_scopes(records, kind, times, f"simulated {unit_name}"),
        "for-energy": _draw_scopes(records, kind, joules, "estimated energy", formatting.energy),
        "multiplications": _draw_multiplications(records, costs),
        "trained": _draw_shells(records, costs) if nested else None,
        "time": _draw_curves([("", (rounds, [record.seconds for record in records]))], "seconds"),
    }
    words = {"kind": kind.capitalize()}
    return [
        Drawing(name, TEXTS[name][0].format(**words), TEXTS[name][1].format(**words), figure)
        for name, figure in found.items()
        if figure
    ]


def _evaluated(records: Sequence[RoundRecord], name: str) -> Points:
    return points(records, lambda record: record.evaluate.get(name))


def _draw_scopes(
    records: Sequence[RoundRecord], kind: str, spent: Sequence[float], xlabel: str, label: Label | None = None
) -> Figure | None:
    """Draw the metric of each scope over what was spent by then; ``label`` writes the ticks."""
    spent_by = {float(record.server_round): total for record, total in zip(records, spent, strict=True)}
    values = {scope: _evaluated(records, f"{scope}-{kind}") for scope in SCOPES if any(spent)}
    curves = [(scope, ([spent_by[number] for number in rounds], own)) for scope, (rounds, own) in values.items()]
    figure = _draw_curves(curves, kind, SCOPE_STYLES, xlabel)
    if figure and label:
        figure.axes[0].xaxis.set_major_formatter(_ticks(label))
    return figure


def _ticks(label: Label) -> FuncFormatter:
    return FuncFormatter(lambda value, _: formatting.tick(label(value)))


def _draw_losses(records: Sequence[RoundRecord]) -> Figure | None:
    def losses(level: str) -> Points:
        return points(records, lambda record: pick_metric(record.train_by_level.get(level, {}), "loss"))

    levels = sorted({level for record in records for level in record.train_by_level})
    together = points(records, lambda record: pick_metric(record.train, "loss"))
    return _draw_curves([(level, losses(level)) for level in levels] or [("all clients", together)], "loss")


def _draw_curves(
    curves: Sequence[tuple[str, Points]],
    ylabel: str,
    styles: Sequence[Style] = (),
    xlabel: str = "round",
    label: Label | None = None,
) -> Figure | None:
    """Draw values over rounds, or over what was spent; None where there are no values. ``label`` writes the ticks."""
    figure, axes = new_axes(xlabel, ylabel)
    drawn: list[float] = []
    for number, (name, (places, values)) in enumerate(curves):
        finite = [value if math.isfinite(value) else math.nan for value in values]
        position, width = styles[number] if styles else (number, 1.5)
        if finite:
            colour, dash = series(position)
            size = width + 1.5 if len(places) < FEW else 0
            axes.plot(places, finite, dash, color=colour, label=name, linewidth=width, marker="o", markersize=size)
            drawn += [value for value in finite if not math.isnan(value)]
    if not drawn:
        return None
    low, high = min(drawn), max(drawn)
    is_share = ylabel.endswith(("accuracy", "full model"))
    if low > 0 and high > 20 * low and not is_share and not label:
        axes.set_yscale("log")
        label = formatting.number
    else:
        axes.set_ylim(min(0, low), high + 0.05 * (max(0, high) - min(0, low)) or 1)
    if is_share and (high > 0.5 or ylabel.endswith("model")):
        axes.set_ylim(top=1.04)
        axes.hlines(1, 0, 1, colors=light("muted"), linewidth=0.8, transform=axes.get_yaxis_transform())
    if is_share or label:
        axes.yaxis.set_major_formatter(_ticks(label) if label else PERCENT)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02)
    add_legend(axes)
    return figure


def _draw_bytes(records: Sequence[RoundRecord], costs: ModelCosts | None, sent: Sequence[int]) -> Figure | None:
    rounds = [record.server_round for record in records]
    curves: list[tuple[str, Points]] = [("this run", (rounds, sent))]
    if costs and summary.savings(records, costs):
        full = list(accumulate(summary.full_bytes(record, costs) for record in records))
        curves.append(("full-size FedAvg", (rounds, full)))
    figure = _draw_curves(curves, "sent in total", ((0, 1.5), (3, 1.5)), label=formatting.size)
    if figure:
        figure.axes[0].fill_between(rounds, sent, color=light("blue"), alpha=0.12, linewidth=0)
    return figure


def _draw_multiplications(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Figure | None:
    rounds, shares = summary.macs_shares(records, costs) if costs else ([], [])
    figure = _draw_curves([("", (rounds, shares))], "share of the full model", ((1, 1.5),))
    if figure:
        mean = math.fsum(shares) / len(shares)
        figure.axes[0].axhline(mean, color=light("muted"), linestyle="--", linewidth=1.2)
    return figure


def _draw_shells(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Figure | None:
    shells = summary.shells(records, costs)
    if not shells:
        return None
    figure, axes = new_axes("share of a round's clients that trained it", "")
    colours = [series(number)[0] for number in range(len(shells))]
    bars = axes.barh(range(len(shells)), [shell.held for shell in shells], height=0.62, color=colours)
    labels = [formatting.percent(shell.held, 0) for shell in shells]
    ground = {"facecolor": light("paper"), "edgecolor": "none", "pad": 0.5}  # hides the line at 100 % behind a label
    axes.bar_label(bars, labels, padding=3, fontsize=SMALL, color=light("ink"), bbox=ground)
    ticks = [f"{shell.holders}: {formatting.percent(shell.share)}" for shell in shells]
    axes.set_yticks(range(len(shells)), ticks, color=light("ink"))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.14)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=light("grid"), linewidth=0.7)
    axes.axvline(1, color=light("muted"), linewidth=0.8)
    return figure
