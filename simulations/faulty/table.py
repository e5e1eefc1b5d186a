"""The matrix as text: Markdown for pages, CSV for everything else."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import groupby

from simulations.faulty.cell import Outcome
from simulations.faulty.fault import MOMENTS
from simulations.faulty.kinds import KINDS

HEADER = ("fault", "what happens", "model", "rounds lost", *(f"{moment}: s" for moment in MOMENTS), "within")


def to_markdown(outcomes: Sequence[Outcome]) -> str:
    """Return a row for each kind: the model, the rounds lost and the seconds to recover, at each moment."""
    rows = [_row(list(own)) for _, own in groupby(outcomes, lambda outcome: outcome.kind)]
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *map(_line, rows)]
    return "\n".join([*lines, "", summary(outcomes), ""])


def to_csv(outcomes: Iterable[Outcome]) -> str:
    """Return a row for each cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Outcome)]
    writer.writerow(names)
    for outcome in outcomes:
        values = {name: getattr(outcome, name) for name in names} | {"faults": "; ".join(outcome.faults)}
        writer.writerow([f"{value:.2f}" if isinstance(value, float) else value for value in values.values()])
    return text.getvalue()


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return one sentence on all cells."""
    bad = [outcome for outcome in outcomes if not outcome.good]
    kinds = len({outcome.kind for outcome in outcomes})
    return f"{len(outcomes)} cells of {kinds} kinds of faults: {len(outcomes) - len(bad)} as promised, {len(bad)} not."


def line_of(outcome: Outcome) -> str:
    """Return one line on a cell."""
    verdict = "as promised" if outcome.good else "; ".join(outcome.faults)
    what = f"model {outcome.model}, rounds lost {outcome.rounds_lost}, {outcome.seconds:.1f} s"
    return f"{outcome.kind:<18}{outcome.moment:<8}{what:<48}{verdict}"


def _row(own: Sequence[Outcome]) -> list[str]:
    at = {outcome.moment: outcome for outcome in own}
    seconds = [
        f"{at[moment].seconds:.1f}{'' if at[moment].good else ' **!**'}" if moment in at else "" for moment in MOMENTS
    ]
    return [
        own[0].kind,
        KINDS[own[0].kind].what,
        _each(outcome.model for outcome in own),
        _each(outcome.rounds_lost for outcome in own),
        *seconds,
        _each(f"{outcome.limit:g}" for outcome in own),
    ]


def _each(values: Iterable[object]) -> str:
    """Return the values of several moments, once if they agree."""
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
