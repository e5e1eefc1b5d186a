"""The figures of a run, drawn from its records alone."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from heterofl_flwr.core import formatting
from heterofl_flwr.federation.records import RoundRecord
from heterofl_flwr.report.drawing import SMALL, add_legend, light, new_axes, series
from heterofl_flwr.report.summary import full_bytes, level_points, level_rows, macs_shares, savings, shells
from heterofl_flwr.runs.class_split import Deal
from heterofl_flwr.runs.costs import ModelCosts
from heterofl_flwr.runs.metrics import SCOPES, families, headline_kind, of_level, points

Points = tuple[Sequence[float], Sequence[float]]
TIMES = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
FEW = 30
"""With fewer points than this, each is marked."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure with its file name, its title and a sentence that says how to read it."""

    name: str
    title: str
    caption: str
    figure: Figure


TEXTS = {
    "learning-curves": (
        "Learning curves",
        "Global: the full model on the whole test set. Local: the full model on each client's own test data, "
        "limited to its classes. Worst: the client with the lowest value.",
    ),
    "levels": ("{kind} by level", "Each level's own model, cut from the global one."),
    "families": ("{kind} by family", "The full model of each family, as the global one of the learning curves."),
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
        "What training would cost all simulated devices together, work in vain included, as their profiles have it.",
    ),
    "multiplications": (
        "Multiplications",
        "Per client and sample, as a share of what the full-size model needs; dashed: the mean.",
    ),
    "trained": (
        "How often each share of the parameters was trained",
        "Smaller models are nested in larger ones. Each bar is a part of the global model: who holds it, how large it "
        "is, and the mean share of a round's clients that trained it.",
    ),
    "deal": (
        "Who has which classes",
        "Training examples of each class (up) at each client (across); the fullest entry has {most}.",
    ),
    "time": ("Time a round", "Wall-clock time, evaluation included."),
}
"""Title and caption of each figure."""


def draw_run(records: Sequence[RoundRecord], costs: ModelCosts | None, deal: Deal | None = None) -> list[Drawing]:
    """Return every figure for which the records, or what clients were dealt, hold something."""
    kind = headline_kind(records)
    figures = {
        "learning-curves": _learning_curves(records, kind),
        "levels": _level_curves(records, costs, kind),
        "families": _curves(
            ((family, _evaluated(records, name)) for family, name in families(records, kind).items()), kind
        ),
        "loss": _losses(records),
        "bytes": _bytes(records, costs),
        "for-bytes": _for_bytes(records, kind),
        "for-time": _for_time(records, kind),
        "for-energy": _for_energy(records, kind),
        "multiplications": _multiplications(records, costs),
        "trained": _trained(records, costs),
        "time": _times(records),
        "deal": draw_deal(deal.train) if deal else None,
    }
    most = max(map(max, deal.train)) if deal else 0
    return [
        Drawing(name, TEXTS[name][0].format(kind=kind.capitalize()), TEXTS[name][1].format(most=most), figure)
        for name, figure in figures.items()
        if figure
    ]


def _learning_curves(records: Sequence[RoundRecord], kind: str) -> Figure | None:
    curves = ((scope, _evaluated(records, f"{scope}-{kind}")) for scope in SCOPES)
    return _curves(curves, kind, (0, 1, 4))


def _level_curves(records: Sequence[RoundRecord], costs: ModelCosts | None, kind: str) -> Figure | None:
    return _curves(((row.level, level_points(records, row.level, kind)) for row in level_rows(records, costs)), kind)


def _losses(records: Sequence[RoundRecord]) -> Figure | None:
    levels = dict.fromkeys(level for record in records for level in sorted(record.train_by_level))

    def of(level: str) -> Points:
        return points(records, lambda record: of_level(record.train_by_level.get(level, {}), "loss"))

    if levels:
        return _curves(((level, of(level)) for level in sorted(levels)), "loss")
    return _curves([("all clients", points(records, lambda record: of_level(record.train, "loss")))], "loss")


def _bytes(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Figure | None:
    if not records:
        return None
    rounds = [record.server_round for record in records]
    figure, axes = new_axes("round", "sent in total")
    if costs and savings(records, costs):
        full = list(accumulate(full_bytes(record, costs) for record in records))
        axes.plot(rounds, full, color=light("muted"), linestyle="--", label="full-size FedAvg")
    sent = _totals(records)
    axes.plot(rounds, sent, color=light("blue"), label="this run")
    axes.fill_between(rounds, sent, color=light("blue"), alpha=0.12, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(formatting.size(value))))
    return _finished(figure, axes)


def _for_bytes(records: Sequence[RoundRecord], kind: str) -> Figure | None:
    return _for_total(records, kind, _totals(records), "sent in total", formatting.size)


def _for_time(records: Sequence[RoundRecord], kind: str) -> Figure | None:
    seconds = list(accumulate(record.simulated_seconds for record in records))
    if not seconds or not seconds[-1]:
        return None
    unit, name = next((own for own in TIMES if seconds[-1] >= 2 * own[0]), TIMES[-1])
    return _for_total(records, kind, [value / unit for value in seconds], f"simulated {name}")


def _for_energy(records: Sequence[RoundRecord], kind: str) -> Figure | None:
    joules = list(accumulate(record.joules for record in records))
    return _for_total(records, kind, joules, "estimated energy", formatting.energy) if joules and joules[-1] else None


def _for_total(
    records: Sequence[RoundRecord],
    kind: str,
    totals: Sequence[float],
    xlabel: str,
    label: Callable[[float], str] | None = None,
) -> Figure | None:
    """Draw the metric over what was spent by then; ``label`` writes the ticks."""
    total = {float(record.server_round): own for record, own in zip(records, totals, strict=True)}
    curves = []
    for scope in SCOPES:
        rounds, values = _evaluated(records, f"{scope}-{kind}")
        curves.append((scope, ([total[server_round] for server_round in rounds], values)))
    figure = _curves(curves, kind, (0, 1, 4), xlabel=xlabel)
    if figure and label:
        figure.axes[0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.tick(label(value))))
    return figure


def _multiplications(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Figure | None:
    rounds, shares = macs_shares(records, costs) if costs else ([], [])
    if not rounds:
        return None
    figure, axes = new_axes("round", "share of the full model")
    axes.plot(rounds, shares, color=light("teal"), linewidth=1.2, marker=_marker(rounds), markersize=3)
    axes.axhline(math.fsum(shares) / len(shares), color=light("muted"), linestyle="--", linewidth=1.2)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    return _finished(figure, axes)


def _trained(records: Sequence[RoundRecord], costs: ModelCosts | None) -> Figure | None:
    found = shells(records, costs)
    if not found:
        return None
    figure, axes = new_axes("share of a round's clients that trained it", "")
    places = range(len(found))
    colours = [series(number)[0] for number in places]
    axes.barh(places, [shell.held for shell in found], color=colours, height=0.62)
    names = [f"{_holders(shell.levels)}: {formatting.percent(shell.share)}" for shell in found]
    axes.set_yticks(places, names, color=light("ink"))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.13)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=light("grid"), linewidth=0.7)
    for place, shell in zip(places, found, strict=True):
        label = formatting.percent(shell.held, 0)
        axes.text(shell.held + 0.015, place, label, va="center", fontsize=SMALL, color=light("ink"))
    return figure


def _times(records: Sequence[RoundRecord]) -> Figure | None:
    return _curves([("seconds", points(records, lambda record: record.seconds))], "seconds", legend=False)


def _curves(
    curves: Iterable[tuple[str, Points]],
    ylabel: str,
    colours: Sequence[int] | None = None,
    *,
    xlabel: str = "round",
    legend: bool = True,
) -> Figure | None:
    figure, axes = new_axes(xlabel, ylabel)
    drawn: list[float] = []
    for number, (name, (rounds, values)) in enumerate(curves):
        finite = [value if math.isfinite(value) else math.nan for value in values]
        if rounds:
            colour, dash = series(colours[number] if colours else number)
            axes.plot(rounds, finite, dash, color=colour, label=name, marker=_marker(rounds), markersize=3)
            drawn += [value for value in finite if not math.isnan(value)]
    if not drawn:
        return None
    if ylabel.endswith("accuracy"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, 0, " %"))
    if min(drawn) > 0 and max(drawn) > 20 * min(drawn) and not ylabel.endswith("accuracy"):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.number(value)))
    else:
        axes.set_ylim(bottom=min(0, *drawn))
    return _finished(figure, axes, legend=legend)


def _finished(figure: Figure, axes: Axes, *, legend: bool = True) -> Figure:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.margins(x=0.02)
    if legend:
        add_legend(axes)
    return figure


def _evaluated(records: Sequence[RoundRecord], name: str) -> Points:
    return points(records, lambda record: record.evaluate.get(name))


def _totals(records: Sequence[RoundRecord]) -> list[int]:
    return list(accumulate(record.bytes_down + record.bytes_up for record in records))


def _marker(rounds: Sequence[float]) -> str:
    return "o" if len(rounds) < FEW else ""


def _holders(levels: Sequence[str]) -> str:
    return f"{levels[0]} only" if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"


def draw_deal(train: Sequence[Sequence[int]]) -> Figure:
    """Return a matrix of clients and classes; the darker an entry, the more examples."""
    counts = np.array(train, dtype=float).T  # (classes, clients)
    figure, axes = new_axes("client", "class")
    axes.grid(visible=False)
    pixels = np.empty((*counts.shape, 4))
    pixels[:] = to_rgba(light("blue"))
    pixels[..., 3] = counts / max(counts.max(), 1)  # transparent where there are none, so it suits any background
    axes.imshow(pixels, aspect="auto", interpolation="nearest", origin="lower")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    return figure
