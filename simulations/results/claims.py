"""Claims of the paper as differences between jobs, and tests of each claim by the runs."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from heterofl_flwr.core.formatting import NOTHING
from heterofl_flwr.core.levels import level_name, rate_of
from heterofl_flwr.core.mix import Mix
from simulations.results.configurations import Reached
from simulations.results.formats import Table, show_difference, to_markdown
from simulations.results.paper import TOO_FEW, Job, Key, Printed
from simulations.results.runs import OF_LEVEL, able_to_hold, short_mix
from simulations.results.statistics import Summary, summarise

Terms = tuple[tuple[float, Key], ...]
"""Weighted jobs and metrics; the claim is that the weighted sum of their results is above 0."""

HOLDS, FAILS, CANNOT_TELL = "holds", "does not hold", "no difference seen"
NORMS = ("none", "in", "gn", "ln")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim that runs can test."""

    title: str
    text: str  # the place in the paper, and the comparison
    terms: Callable[[Job, str], Iterator[Terms]]  # function of a job and a metric that yields comparisons
    scopes: tuple[str, ...] = ("global", "local")
    of_levels: bool = False  # whether the metric is that of a level's model inside a mix


def _levels(job: Job) -> list[Job]:
    """Return a job for each level of a mix, from the largest level on, with all clients at this level.

    The result is empty for a job with a single level.
    """
    levels = Mix.parse(job.mix).rates
    return [replace(job, mix=level_name(level)) for level in levels] if len(levels) > 1 else []


def _near_largest(job: Job, metric: str) -> Iterator[Terms]:
    if levels := _levels(job):
        yield (1, (job, metric)), (-0.5, (levels[0], metric)), (-0.5, (levels[-1], metric))


def _above(levels: slice) -> Callable[[Job, str], Iterator[Terms]]:
    """Return a function that compares a mix with some of its levels; ``levels`` is a slice of them, largest first."""
    return lambda job, metric: (((1, (job, metric)), (-1, (level, metric))) for level in _levels(job)[levels])


def _exclusive(job: Job, rate: float) -> Job:
    """Return the job that trains a single level, with the clients that can hold it, each as often as in ``job``."""
    mix = Mix.parse(job.mix)
    able = able_to_hold(mix, rate)
    idle = sum(mix.counts) + mix.idle - able
    return replace(job, mix=short_mix(Mix((rate,), (able,), idle=idle)), assignment="fix")


def _above_exclusive(job: Job, metric: str) -> Iterator[Terms]:
    """Yield comparisons of a Fix mix with ``_exclusive`` jobs of each of its levels, except the smallest."""
    if job.assignment == "fix":
        for rate in Mix.parse(job.mix).rates[:-1]:
            yield (1, (job, metric)), (-1, (_exclusive(job, rate), metric))


def _own_above_exclusive(job: Job, metric: str) -> Iterator[Terms]:
    """Yield the comparison of a level's model inside a Fix mix with the ``_exclusive`` job of the level."""
    whole, _, level = metric.partition(OF_LEVEL)
    if job.assignment == "fix":
        yield (1, (job, metric)), (-1, (_exclusive(job, rate_of(level)), whole))


def _own_above_all(job: Job, metric: str) -> Iterator[Terms]:
    """Yield the comparison of a level's model inside a mix with the job of all clients at this level."""
    whole, _, level = metric.partition(OF_LEVEL)
    yield (1, (job, metric)), (-1, (replace(job, mix=level), whole))


def _changed(changes: Sequence[Mapping[str, object]], **fields: object) -> Callable[[Job, str], Iterator[Terms]]:
    """Return a function that compares a job that has ``fields`` with variants of it, one for each of ``changes``."""

    def terms(job: Job, metric: str) -> Iterator[Terms]:
        if all(getattr(job, name) == value for name, value in fields.items()):
            for change in changes:
                other = replace(job, **change)  # type: ignore[arg-type]
                if other != job:  # some changes have no effect on a single level
                    yield (1, (job, metric)), (-1, (other, metric))

    return terms


CLAIMS = (
    Claim(
        "Small clients take part at little cost",
        "Tables 1 to 3 and 7 to 9, section 4. Compared: a mix with the middle between its largest and its smallest "
        "level alone; above 0, it is nearer to the largest.",
        _near_largest,
    ),
    Claim(
        "A mix is better than its largest level alone",
        "Tables 7 to 9. Compared: the global model of a mix, which is as large as its largest level, with that level "
        "trained by every client, also by those that could not hold it.",
        _above(slice(1)),
    ),
    Claim(
        "A mix is better than its smaller levels alone",
        "Tables 1 to 3 and 7 to 9, section 4: the paper claims it of the smallest level. Compared: the global model of "
        "a mix with each smaller level trained by every client.",
        _above(slice(1, None)),
    ),
    Claim(
        "A mix is better than a level that only the clients who can hold it train",
        "The gain by small clients: no number of the paper. Compared: the global model of a mix, Fix, with each of its "
        "levels at equal participation: trained by the clients that can hold it, each as often as in the mix; x counts "
        "the clients that take no part.",
        _above_exclusive,
    ),
    Claim(
        "Each level gains by taking part, at equal participation",
        "No number of the paper. Compared: the own model of each level inside a mix, Fix, with that level trained by "
        "the clients that can hold it, each as often as in the mix.",
        _own_above_exclusive,
        of_levels=True,
    ),
    Claim(
        "Each level gains by taking part, compared with all clients at that level",
        "No number of the paper. Compared: the own model of each level inside a mix with that level trained by every "
        "client, also by those that could not hold it.",
        _own_above_all,
        of_levels=True,
    ),
    Claim(
        "Dynamic is better than Fix",
        "Section 4 and Figures 9 to 11. Compared: levels that are drawn anew each round with fixed ones.",
        _changed([{"assignment": "fix"}], assignment="dynamic"),
    ),
    Claim(
        "Static batch norm is better than other norms",
        "Captions of Tables 4 and 5. Compared: static batch norm with each other norm, and with none.",
        _changed([{"norm": norm} for norm in NORMS], norm="sbn"),
    ),
    Claim(
        "The Scaler helps",
        "Captions of Tables 4 and 5. Compared: with and without it.",
        _changed([{"scaler": False}], scaler=True),
    ),
    Claim(
        "The mask helps global accuracy where clients have few classes",
        "Caption of Table 5. Compared: with and without it.",
        _changed([{"masked": False}], masked=True, split="noniid"),
        ("global",),
    ),
)

TITLE = """# Claims of the paper, and our runs

`{command}` writes this.

A claim says that a difference is above 0; for perplexity, where less is better, signs are turned. Differences are of
runs with the same seed, in points of accuracy or of perplexity: their mean, and from three seeds on its 95 % interval
by the t distribution. A claim *holds* where the whole interval is above 0, and *does not hold* where all of it is
below. Where 0 is in the interval, there is *no difference seen*; with fewer than three seeds there are *too few seeds*
to tell. Final: after the last round, which is not a choice. Best: in the round whose global metric is best on the test
set, which is what the paper prints; runs that evaluate a level's own model only in other rounds have no best value of
it. *Could have seen* is the power of the comparison of final rounds: a true difference of so many points would be seen
in 80 of 100 such comparisons, with these seeds and their spread; a smaller one may well be missed. Paper: the same
difference of printed numbers.
"""
HEADER = (
    *("data", "compared", "seeds", "final", "by final rounds", "could have seen"),
    *("best", "by best rounds", "paper"),
)


def claims_page(found: Mapping[Key, Reached], printed: Printed, command: str) -> str:
    """Return the page with all claims, their comparisons and verdicts."""
    tables = [Table("", claim.title, HEADER, tuple(_rows(claim, found, printed)), claim.text) for claim in CLAIMS]
    verdicts = [HEADER.index(name) for name in ("by final rounds", "by best rounds")]
    summary = tuple((table.title, *(_count([row[at] for row in table.rows]) for at in verdicts)) for table in tables)
    heads = ("claim", *(HEADER[at] for at in verdicts))
    parts = [TITLE.format(command=command), to_markdown(Table("", "Summary", heads, summary))]
    return "\n".join([*parts, *map(to_markdown, tables)])


def _count(verdicts: Sequence[str]) -> str:
    numbers = Counter(verdict for verdict in verdicts if verdict != NOTHING)
    return ", ".join(f"{verdict}: {number}" for verdict, number in numbers.most_common()) or "not run"


def _rows(claim: Claim, found: Mapping[Key, Reached], printed: Printed) -> Iterator[tuple[str, ...]]:
    """Yield a row for each comparison of a claim, if all its jobs have runs with common seeds."""
    keys = [
        (job, metric)
        for job, metric in found
        if metric.startswith(claim.scopes) and (OF_LEVEL in metric) == claim.of_levels
    ]
    for job, metric in keys:
        if job.split == "iid" and metric.startswith("local"):
            continue  # with all classes on each client, it is the global metric on parts of the test set
        for terms in claim.terms(job, metric):
            own = [(weight, found[key]) for weight, key in terms if key in found]
            sign = -1 if metric.endswith("perplexity") else 1
            seeds = set.intersection(*(set(one.values("final")) for _, one in own)) if len(own) == len(terms) else set()
            if not seeds:
                continue
            final, best = (
                summarise(
                    [sum(sign * weight * one.values(when)[seed] for weight, one in own) for seed in sorted(seeds)]
                )
                for when in ("final", "best")
            )
            yield (
                f"{job.data}, {job.split}, {metric.replace('-', ' ').replace(OF_LEVEL, ' of ')}",
                f"{job} against {' and '.join(str(other) for _, (other, _) in terms[1:])}",
                ", ".join(map(str, sorted(seeds))),
                *(show_difference(final), _verdict(final)),
                NOTHING if final.detectable is None else f"{final.detectable:.2f}",
                *((NOTHING, NOTHING) if math.isnan(best.mean) else (show_difference(best), _verdict(best))),
                _printed(terms, printed, sign),
            )


def _printed(terms: Terms, printed: Printed, sign: int) -> str:
    """Return the difference of the paper's numbers, if a single table has all of them."""
    by_table: dict[str, list[float]] = {}
    for weight, key in terms:
        for cell in printed.get(key, ()):
            by_table.setdefault(cell.table, []).append(sign * weight * cell.value)
    complete = (sum(values) for values in by_table.values() if len(values) == len(terms))
    return next((f"{value:+.2f}" for value in complete), NOTHING)


def _verdict(difference: Summary) -> str:
    if difference.interval is None:
        return TOO_FEW
    low, high = difference.interval
    return HOLDS if low > 0 else FAILS if high < 0 else CANNOT_TELL
