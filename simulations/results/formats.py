"""Tables in Markdown, LaTeX and CSV; means and intervals as text."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from heterofl_flwr.core.formatting import NOTHING, latex, render
from simulations.results.statistics import Interval, Summary


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text. All rows have as many cells as the header."""

    label: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""  # a sentence below it


def to_markdown(table: Table) -> str:
    """Return a Markdown section with the table."""
    shown = render(table.header, table.rows, "markdown") if table.rows else ""
    parts = [f"## {table.title}", shown, table.note]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_latex(table: Table) -> str:
    """Return a LaTeX ``table`` that needs no package."""
    caption = latex(" ".join(filter(None, [f"{table.title}.", table.note])))
    parts = [r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", rf"\label{{{table.label}}}"]
    return "\n".join([*parts, render(table.header, table.rows, "latex"), r"\end{table}", ""])


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as comma-separated values, with a header; missing values are empty."""
    return render(columns, [[str(row.get(column, "")) for column in columns] for row in rows], "csv") + "\n"


def show_summary(summary: Summary) -> str:
    """Return a mean with its standard deviation and interval as text, if there are enough values for these."""
    return f"{show_spread(summary)} {show_interval(summary.interval)}" if summary.interval else show_spread(summary)


def show_spread(summary: Summary) -> str:
    """Return a mean with its standard deviation, if there are two values or more."""
    return f"{summary.mean:.2f}" + ("" if summary.deviation is None else f" ± {summary.deviation:.2f}")


def show_interval(interval: Interval | None) -> str:
    """Return an interval as text."""
    return f"[{', '.join(f'{end:.2f}' for end in interval)}]" if interval else NOTHING


def show_difference(summary: Summary, digits: int = 2) -> str:
    """Return a mean difference with its 95 % interval as text, if there are enough values for this."""
    interval = f" [{', '.join(f'{end:+.{digits}f}' for end in summary.interval)}]" if summary.interval else ""
    return f"{summary.mean:+.{digits}f}{interval}"
