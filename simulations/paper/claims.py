"""What the paper claims, as differences between jobs, and what the runs say of each claim."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from heterofl_flwr.core.formatting import NOTHING
from heterofl_flwr.core.levels import Mix, level_name
from simulations.paper.printed import TABLES, Cell, Job, usual_norm
from simulations.paper.tables import METRICS
from simulations.paper.verdicts import TOO_FEW, Group, Key
from simulations.statistics import contrast
from simulations.tables import Table, show_contrast, show_spread, to_markdown

Terms = tuple[tuple[float, Job], ...]
"""Jobs with their weights: the sum of their results, each times its weight, is what a claim says is above 0."""

HOLDS, FAILS, CANNOT_TELL = "holds", "does not hold", "no difference seen"
NORMS = ("none", "in", "gn", "ln")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of the paper that runs can test."""

    title: str
    text: str  # where the paper makes it, and what is compared
    terms: Callable[[Job], Iterator[Terms]]  # from a job to what is compared with it
    metrics: tuple[str, ...] = ("accuracy", "local", "global", "perplexity")


def _ends(job: Job) -> tuple[Job, Job]:
    """Return the jobs of a mix's largest and smallest level alone."""
    largest, *_, smallest = map(level_name, Mix.parse(job.mix).rates)
    return replace(job, mix=largest), replace(job, mix=smallest)


def _near_largest(job: Job) -> Iterator[Terms]:
    if "-" in job.mix:
        largest, smallest = _ends(job)
        yield (1, job), (-0.5, largest), (-0.5, smallest)


def _above_smallest(job: Job) -> Iterator[Terms]:
    if "-" in job.mix:
        yield (1, job), (-1, _ends(job)[1])


def _changed(changes: Sequence[Mapping[str, object]], **own: object) -> Callable[[Job], Iterator[Terms]]:
    """Return a function that compares jobs of which ``own`` is true with those that differ by a change."""

    def terms(job: Job) -> Iterator[Terms]:
        if all(getattr(job, name) == value for name, value in own.items()):
            for change in changes:
                other = replace(job, **change)  # type: ignore[arg-type]
                if other != job:  # some have no effect on a single level
                    yield (1, job), (-1, other)

    return terms


CLAIMS = (
    Claim(
        "Small clients take part at little cost",
        "Tables 1 to 3 and 7 to 9, section 4. Compared: a mix with the middle between its largest and its smallest "
        "level alone; above 0, it is nearer to the largest.",
        _near_largest,
    ),
    Claim(
        "A mix is better than its smallest level alone",
        "Tables 1 to 3 and 7 to 9, section 4. Compared: the global model of a mix, which is as large as its largest "
        "level, with its smallest level alone.",
        _above_smallest,
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

HEADER = """# Claims of the paper, and our runs

`{command}` wrote this.

A claim says that a difference is above 0; for perplexity, where less is better, signs are turned. It *holds* where the
whole 95 % interval of the difference (Welch) is above 0, and *does not hold* where all of it is below. Where the
interval has 0 in it, there is *no difference seen*; with fewer than three seeds on any side there are *too few seeds*
to tell. Values are best rounds, mean ± standard deviation, with the number of seeds in brackets; paper: the same
difference of printed numbers.
"""


def claims_page(groups: Mapping[Key, Group], cells: Sequence[Cell], command: str) -> str:
    """Return a page that says of every claim what the runs say."""
    printed = {(cell.table, cell.job, cell.metric): cell.value for cell in cells}
    tables = [
        Table(
            "",
            claim.title,
            ("data", "compared", "values", "difference", "paper", "our runs say"),
            tuple(_rows(claim, groups, printed)),
        )
        for claim in CLAIMS
    ]
    summary = tuple((table.title, _count([row[-1] for row in table.rows])) for table in tables)
    parts = [HEADER.format(command=command), to_markdown(Table("", "Summary", ("claim", "our runs say"), summary))]
    for claim, table in zip(CLAIMS, tables, strict=True):
        parts.append(to_markdown(replace(table, note=claim.text)))
    return "\n".join(parts)


def _count(verdicts: Sequence[str]) -> str:
    return ", ".join(f"{verdict}: {number}" for verdict, number in Counter(verdicts).most_common()) or "not run"


def _rows(
    claim: Claim, groups: Mapping[Key, Group], printed: Mapping[tuple[str, Job, str], float]
) -> Iterator[tuple[str, ...]]:
    """Yield the comparisons all of whose jobs have runs."""
    for job, metric in [key for key in groups if key[1] in claim.metrics]:
        for terms in claim.terms(job):
            own = [(weight, groups[other, metric]) for weight, other in terms if (other, metric) in groups]
            if len(own) == len(terms):
                sign = -1 if metric == "perplexity" else 1
                value, half_width = contrast([(sign * weight, group.best) for weight, group in own])
                names = [_name(other, terms) for _, other in terms]
                values = " / ".join(f"{show_spread(group.best)} ({group.best.number})" for _, group in own)
                theirs = (
                    [sign * weight * printed[table, other, metric] for weight, other in terms]
                    for table in TABLES
                    if all((table, other, metric) in printed for _, other in terms)
                )
                paper = next((f"{sum(parts):+.2f}" for parts in theirs), NOTHING)
                yield (
                    f"{job.data}, {METRICS.get(metric, metric)}",
                    f"{names[0]} against {' and '.join(names[1:])}",
                    values,
                    show_contrast(value, half_width),
                    paper,
                    _verdict(value, half_width),
                )


def _name(job: Job, terms: Terms) -> str:
    """Return a job's mix, and in which properties it differs from its usual form or from others of a comparison."""
    usual = Job(job.data, job.split, job.mix, norm=usual_norm(job.data))
    words = {
        "assignment": job.assignment,
        "norm": f"norm {job.norm}",
        "scaler": "Scaler" if job.scaler else "no Scaler",
        "masked": "mask" if job.masked else "no mask",
    }
    shown = [
        word
        for name, word in words.items()
        if len({getattr(other, name) for other in (usual, *(own for _, own in terms)) if other.mix == job.mix}) > 1
    ]
    return f"{job.mix} ({', '.join(shown)})" if shown else job.mix


def _verdict(value: float, half_width: float | None) -> str:
    if half_width is None:
        return TOO_FEW
    return HOLDS if value > half_width else FAILS if value < -half_width else CANNOT_TELL
