"""What Figures 2 to 11 show: which run is which point, and which points have no run yet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from heterofl_flwr.core.levels import LEVELS, Mix
from simulations.published.jobs import Job, short_mix, usual_norm
from simulations.published.runs import RECORDED
from simulations.published.statistics import Summary, summarise
from simulations.published.tally import Group, Key, as_printed

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
    """A line of a panel: its points, ascending in x, and what of it has no run.

    Attributes
    ----------
    label
        The two levels, such as ``a-e``.
    points
        x, and the mean over seeds with its interval.
    missing
        The mixes without a run.
    """

    label: str
    points: tuple[tuple[float, Summary], ...]
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Panel:
    """One part of a figure.

    Attributes
    ----------
    name, title
        ``3a``, and what it shows.
    metric
        What y is.
    over_rounds
        Whether x is the round; else it is the mean parameters of a client.
    curves
        All curves of the paper's panel; those without a point have no run.
    """

    name: str
    title: str
    metric: str
    over_rounds: bool
    curves: tuple[Curve, ...] = field(default=())

    @property
    def drawable(self) -> bool:
        """Whether there is anything to draw."""
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
    group = _find(groups, what, mix, assignment)
    return Curve(mix, _means(group), ()) if group else Curve(mix, (), (mix,))


def _means(group: Group) -> tuple[tuple[float, Summary], ...]:
    """Return the means over seeds in the rounds in which all of them were evaluated."""
    name = RECORDED[group.metric]
    values = [
        {record.server_round: record.evaluate[name] for record in run.records if name in record.evaluate}
        for run, _ in group.runs
    ]
    rounds: Sequence[int] = sorted(set.intersection(*(set(own) for own in values)))
    return tuple((one, summarise([as_printed(group.metric, own[one]) for own in values])) for one in rounds)


def _find(groups: Mapping[Key, Group], what: tuple[str, str, str], mix: str, assignment: str) -> Group | None:
    data, split, metric = what
    return groups.get((Job(data, split, mix, assignment, usual_norm(data)), metric))
