"""Claims of the paper as differences between jobs, and tests of each claim by the runs."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from heterofl_flwr.core.formatting import NOTHING
from heterofl_flwr.core.levels import level_name, rate_of
from heterofl_flwr.core.mix import Mix
from simulations.program import sections_beside
from simulations.results.configurations import Reached
from simulations.results.paper import TOO_FEW, Job, Key, Printed
from simulations.results.runs import OF_LEVEL, able_to_hold, short_mix
from simulations.results.statistics import Summary, show_difference, summarise
from simulations.results.tables import Table, to_markdown

Others = Callable[[Job, str], Iterable[Sequence[Key]]]
"""Function of a job and a metric; the claim is that its result is above the mean of each group of other results."""

HOLDS, FAILS, CANNOT_TELL = "holds", "does not hold", "no difference seen"
NORMS = ("none", "in", "gn", "ln")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that runs can test."""

    others: Others
    scopes: tuple[str, ...] = ("global", "local")
    of_levels: bool = False  # whether the metric is that of a level's model inside a mix


def _levels(job: Job) -> list[Job]:
    """Return a job for each level of a mix, from the largest level on, with all clients at this level.

    The result is empty for a job with a single level.
    """
    levels = Mix.parse(job.mix).rates
    return [replace(job, mix=level_name(level)) for level in levels] if len(levels) > 1 else []


def _ends(job: Job, metric: str) -> Iterator[Sequence[Key]]:
    if levels := _levels(job):
        yield (levels[0], metric), (levels[-1], metric)


def _alone(levels: slice) -> Others:
    """Return a function that yields some levels of a mix, each trained by all clients; the largest level is first."""
    return lambda job, metric: ([(level, metric)] for level in _levels(job)[levels])


def _exclusive(job: Job, rate: float) -> Job:
    """Return the job that trains a single level, with the clients that can hold it, each as often as in ``job``."""
    mix = Mix.parse(job.mix)
    able = able_to_hold(mix, rate)
    return replace(job, mix=short_mix(Mix((rate,), (able,), idle=len(mix.parts) - able)), assignment="fix")


def _levels_exclusive(job: Job, metric: str) -> Iterator[Sequence[Key]]:
    """Yield the ``_exclusive`` jobs of each level of a Fix mix, except the smallest."""
    if job.assignment == "fix":
        yield from ([(_exclusive(job, rate), metric)] for rate in Mix.parse(job.mix).rates[:-1])


def _level_exclusive(job: Job, metric: str) -> Iterator[Sequence[Key]]:
    """Yield the ``_exclusive`` job of the level in ``metric``, for a Fix mix."""
    level = metric.partition(OF_LEVEL)[2]
    if job.assignment == "fix":
        yield from _alone_in(_exclusive(job, rate_of(level)), job, metric)


def _level_alone(job: Job, metric: str) -> Iterator[Sequence[Key]]:
    """Yield the job of all clients at the level in ``metric``."""
    yield from _alone_in(replace(job, mix=metric.partition(OF_LEVEL)[2]), job, metric)


def _alone_in(alone: Job, job: Job, metric: str) -> Iterator[Sequence[Key]]:
    """Yield the job of a level alone with its metric on all clients' test data, as measured inside a mix.

    IID data of all clients are the whole test set: the global metric is equal there, and has values of more rounds.
    """
    if _levels(job):
        yield [(alone, metric.partition(OF_LEVEL)[0] if job.split == "iid" else metric)]


def _changed(field: str, value: object, *others: object, splits: Sequence[str] = ("iid", "noniid")) -> Others:
    """Return a function that yields variants of a job whose ``field`` has the value, one for each other value."""

    def variants(job: Job, metric: str) -> Iterator[Sequence[Key]]:
        if getattr(job, field) == value and job.split in splits:
            changed = (replace(job, **{field: other}) for other in others)  # type: ignore[arg-type]
            yield from ([(other, metric)] for other in changed if other != job)  # some change nothing of a single level

    return variants


CLAIMS = {
    "Small clients take part at little cost": Claim(_ends),
    "A mix is better than its largest level alone": Claim(_alone(slice(1))),
    "A mix is better than its smaller levels alone": Claim(_alone(slice(1, None))),
    "A mix is better than a level that only the clients who can hold it train": Claim(_levels_exclusive),
    "Each level gains by taking part, at equal participation": Claim(_level_exclusive, of_levels=True),
    "Each level gains by taking part, compared with all clients at that level": Claim(_level_alone, of_levels=True),
    "Dynamic is better than Fix": Claim(_changed("assignment", "dynamic", "fix")),
    "Static batch norm is better than other norms": Claim(_changed("norm", "sbn", *NORMS)),
    "The Scaler helps": Claim(_changed("scaler", True, False)),
    "The mask helps global accuracy where clients have few classes": Claim(
        _changed("masked", True, False, splits=("noniid",)), ("global",)
    ),
}
"""Claims by the title of their section in ``claims.md``, which says where the paper makes them."""

HEADER = ("data", "compared", "seeds", "final", "by final rounds", "could have seen", "best", "by best rounds", "paper")


def claims_page(found: Mapping[Key, Reached], printed: Printed, command: str) -> str:
    """Return the page with all claims, their comparisons and verdicts."""
    texts = sections_beside(__file__, "claims.md")
    tables = [
        Table("", title, HEADER, tuple(_rows(claim, found, printed)), texts[title]) for title, claim in CLAIMS.items()
    ]
    verdicts = [HEADER.index(name) for name in ("by final rounds", "by best rounds")]
    counts = tuple((table.title, *(_count([row[at] for row in table.rows]) for at in verdicts)) for table in tables)
    summary = Table("", "Summary", ("claim", *(HEADER[at] for at in verdicts)), counts)
    return "\n".join([texts[""].format(command=command), *map(to_markdown, (summary, *tables))])


def _count(verdicts: Sequence[str]) -> str:
    numbers = Counter(verdict for verdict in verdicts if verdict != NOTHING)
    return ", ".join(f"{verdict}: {number}" for verdict, number in numbers.most_common()) or "not run"


def _rows(claim: Claim, found: Mapping[Key, Reached], printed: Printed) -> Iterator[tuple[str, ...]]:
    """Yield a row for each comparison of a claim, if all its jobs have runs with common seeds."""
    for job, metric in found:
        chosen = metric.startswith(claim.scopes) and (OF_LEVEL in metric) == claim.of_levels
        for others in claim.others(job, metric) if chosen and not job.repeats_global(metric) else ():
            keys = [(job, metric), *others]
            results = [found[key] for key in keys if key in found]
            seeds = sorted(set.intersection(*(set(own.values("final")) for own in results)))
            if len(results) < len(keys) or not seeds:
                continue
            sign = -1 if metric.endswith("perplexity") else 1
            final, best = (
                summarise([sign * _above_mean(*(own.values(when)[seed] for own in results)) for seed in seeds])
                for when in ("final", "best")
            )
            yield (
                f"{job.data}, {job.split}, {metric.replace('-', ' ').replace(OF_LEVEL, ' of ')}",
                f"{job} against {' and '.join(str(other) for other, _ in others)}",
                ", ".join(map(str, seeds)),
                *(show_difference(final), _verdict(final)),
                NOTHING if final.detectable is None else f"{final.detectable:.2f}",
                *((NOTHING, NOTHING) if math.isnan(best.mean) else (show_difference(best), _verdict(best))),
                _printed(keys, printed, sign),
            )


def _above_mean(value: float, *others: float) -> float:
    """Return a value minus the mean of others."""
    return sum((-other / len(others) for other in others), value)


def _printed(keys: Sequence[Key], printed: Printed, sign: int) -> str:
    """Return the difference of the paper's numbers, if a single table has all of them."""
    tables = [{cell.table: cell.value for cell in printed.get(key, ())} for key in keys]
    complete = (number for number in tables[0] if all(number in table for table in tables))
    values = (sign * _above_mean(*(table[number] for table in tables)) for number in complete)
    return next((f"{value:+.2f}" for value in values), NOTHING)


def _verdict(difference: Summary) -> str:
    if difference.interval is None:
        return TOO_FEW
    low, high = difference.interval
    return HOLDS if low > 0 else FAILS if high < 0 else CANNOT_TELL
