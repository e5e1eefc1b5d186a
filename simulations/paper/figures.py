"""What Figures 2 to 11 show: which run is which point, and which points have no run yet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from heterofl_flwr.core import formatting
from heterofl_flwr.core.levels import LEVELS, Mix
from heterofl_flwr.report.drawing import add_band, add_legend, new_axes, series, to_png, to_svg_file
from simulations.paper.printed import Job, usual_norm
from simulations.paper.runs import RECORDED
from simulations.paper.verdicts import Group, Key, as_printed, possible
from simulations.results.runs import short_mix
from simulations.statistics import Summary, summarise

INTERPOLATION: Mapping[int, tuple[str, str, str]] = MappingProxyType(
    {
        2: ("cifar10", "iid", "accuracy"),
        3: ("mnist", "iid", "accuracy"),
        4: ("wikitext2", "iid", "perplexity"),
        5: ("mnist", "noniid", "local"),
        6: ("cifar10", "noniid", "local"),
        7: ("mnist", "noniid", "global"),
        8: ("cifar10", "noniid", "global"),
    }
)
"""By figure: data, split and metric. Its panels are the larger of two levels, its curves the smaller one."""

LEARNING: Mapping[int, tuple[str, tuple[tuple[str, str], ...]]] = MappingProxyType(
    {
        9: ("mnist", (("iid", "accuracy"), ("noniid", "local"), ("noniid", "global"))),
        10: ("cifar10", (("iid", "accuracy"), ("noniid", "local"), ("noniid", "global"))),
        11: ("wikitext2", (("iid", "perplexity"),)),
    }
)
"""By figure: data, then split and metric of each pair of panels, Fix and Dynamic."""

LARGEST, *SMALLER = LEVELS
TENTHS = range(1, 11)


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a panel: its points, ascending in x, and what of it has no run."""

    label: str  # the two levels, such as a-e
    points: tuple[tuple[float, Summary], ...]  # x, and the mean over seeds with its interval
    missing: tuple[str, ...] = ()  # mixes without a run


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of a figure."""

    name: str  # such as 3a
    title: str
    metric: str  # what y is
    over_rounds: bool  # whether x is the round; else it is the mean parameters of a client
    curves: tuple[Curve, ...] = ()  # all curves of the paper's panel; those without a point have no run

    @property
    def drawable(self) -> bool:
        return any(curve.points for curve in self.curves)


def panels(groups: Mapping[Key, Group]) -> list[Panel]:
    """Return all panels of Figures 2 to 11."""
    return [*_interpolations(groups), *_learning(groups)]


def _interpolations(groups: Mapping[Key, Group]) -> Iterator[Panel]:
    levels = list(LEVELS)
    for number, (data, split, metric) in INTERPOLATION.items():
        for place, large in enumerate(levels[:-1]):
            curves = tuple(_interpolation(groups, (data, split, metric), large, small) for small in levels[place + 1 :])
            title = f"{data}, {split}, {metric}, Fix: {large} with smaller levels"
            yield Panel(f"{number}{large}", title, metric, over_rounds=False, curves=curves)


def _interpolation(groups: Mapping[Key, Group], what: tuple[str, str, str], large: str, small: str) -> Curve:
    """Return the curve from 10 % to 100 % of the larger level; its end alone, which curves share, is no curve."""
    points, missing = [], []
    for tenth in TENTHS:
        mix = short_mix(Mix.parse(f"{large}{tenth}-{small}{10 - tenth}" if tenth < 10 else large))
        group = _find(groups, what, mix, "fix")
        size = group.runs[0][0].parameters if group else None
        if group and size is not None:
            points.append((size, group.best))
        else:
            missing.append(mix)
    alone = len(points) == 1 and large not in missing
    return Curve(f"{large}-{small}", () if alone else tuple(sorted(points, key=lambda point: point[0])), tuple(missing))


def _learning(groups: Mapping[Key, Group]) -> Iterator[Panel]:
    for number, (data, rows) in LEARNING.items():
        letters = iter("abcdef")
        for split, metric in rows:
            for assignment in ("fix", "dynamic"):
                curves = tuple(_history(groups, (data, split, metric), f"{LARGEST}-{x}", assignment) for x in SMALLER)
                title = f"{data}, {split}, {metric}, {assignment.capitalize()}: half of the clients are a"
                yield Panel(f"{number}{next(letters)}", title, metric, over_rounds=True, curves=curves)


def _history(groups: Mapping[Key, Group], what: tuple[str, str, str], mix: str, assignment: str) -> Curve:
    """Return the means over seeds in the rounds in which all of them were evaluated."""
    group = _find(groups, what, mix, assignment)
    if group is None:
        return Curve(mix, (), (mix,))
    metric, name = group.metric, RECORDED[group.metric]
    values = [{number: own[name] for number, own in run.scores(metric).items()} for run, _ in group.runs]
    rounds = sorted(set.intersection(*(set(own) for own in values)))
    points = ((one, summarise([as_printed(metric, own[one]) for own in values], possible(metric))) for one in rounds)
    return Curve(mix, tuple(points))


def _find(groups: Mapping[Key, Group], what: tuple[str, str, str], mix: str, assignment: str) -> Group | None:
    data, split, metric = what
    return groups.get((Job(data, split, mix, assignment, usual_norm(data)), metric))


HEADER = """# Figures 2 to 11

Drawn from finished runs with the published settings, and from nothing else. Every point is the mean over seeds; bars
and bands are 95 % intervals, from three seeds on. In Figures 2 to 8 a point is the best round by the test set, as in
the paper, over the mean number of parameters of a client.
"""


def draw(panel: Panel) -> Figure:
    """Return a panel that has points as a figure."""
    ylabel = panel.metric if panel.metric == "perplexity" else "accuracy, %"
    figure, axes = new_axes("round" if panel.over_rounds else "mean parameters of a client", ylabel)
    for curve in panel.curves:
        if curve.points:
            _plot(axes, panel, curve)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if not panel.over_rounds:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formatting.count(value)))
    add_legend(axes)
    return figure


def files(panels: Sequence[Panel]) -> dict[str, bytes]:
    """Return the files of all panels that have points, and a page that shows them and lists what is missing."""
    made: dict[str, bytes] = {}
    for panel in panels:
        if panel.drawable:
            figure = draw(panel)
            made[f"figures/figure-{panel.name}.png"] = to_png(figure)
            made[f"figures/figure-{panel.name}.svg"] = to_svg_file(figure, panel.name)
    return {**made, "figures.md": page(panels).encode()}


def page(panels: Sequence[Panel]) -> str:
    """Return the page, in Markdown."""
    parts = [HEADER]
    for panel in panels:
        shown = f"\n![{panel.title}](figures/figure-{panel.name}.svg)\n" if panel.drawable else ""
        missing = [f"- {curve.label}: {', '.join(curve.missing)}" for curve in panel.curves if curve.missing]
        without = "\nWithout a run:\n\n" + "\n".join(missing) + "\n" if missing else ""
        parts.append(f"## Figure {panel.name}: {panel.title}\n{shown}{without}")
    return "\n".join(parts)


def _plot(axes: Axes, panel: Panel, curve: Curve) -> None:
    """Draw a curve, in the same look for the same smaller level in every panel; with bars, or a band over rounds."""
    colour, dash = series(list(LEVELS).index(curve.label[-1]) - 1)
    places, values = [place for place, _ in curve.points], [own for _, own in curve.points]
    means = [own.mean for own in values]
    if panel.over_rounds:
        axes.plot(places, means, dash, color=colour, label=curve.label)
        add_band(axes, places, [own.ends for own in values], colour)
        return
    ends = [own.ends for own in values]
    bars = [[mean - low for mean, (low, _) in zip(means, ends, strict=True)]]
    bars += [[high - mean for mean, (_, high) in zip(means, ends, strict=True)]]
    shown = bars if any(map(any, bars)) else None
    axes.errorbar(
        places, means, shown, color=colour, linestyle=dash, label=curve.label, marker="o", markersize=3, capsize=2
    )
