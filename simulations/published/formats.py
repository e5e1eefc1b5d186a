"""Tables as Markdown and as LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from heterofl_flwr.core.formatting import render

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text.

    Attributes
    ----------
    label, title
        A name without blanks, and a title.
    header, rows
        The cells; every row is as long as the header.
    note
        A sentence below it, or nothing.
    """

    label: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def to_markdown(table: Table) -> str:
    """Return a section with the table."""
    rows = [tuple(cell.replace("|", r"\|") for cell in row) for row in table.rows]
    parts = [f"## {table.title}", *([render(table.header, rows, "markdown")] if rows else []), table.note]
    return "\n\n".join(filter(None, parts)) + "\n"


def to_latex(table: Table) -> str:
    """Return a ``table`` that needs no package."""
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escape(' '.join(filter(None, [f'{table.title}.', table.note])))}}}",
            rf"\label{{{table.label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\hline",
            _row(table.header),
            r"\hline",
            *map(_row, table.rows),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Return text as LaTeX prints it."""
    return _SPECIAL.sub(lambda match: _LATEX[match[0]], text)


def _row(cells: Sequence[str]) -> str:
    # A bracket after the end of a row would be taken for its optional argument, so every row begins with braces.
    return f"{{}}{' & '.join(map(escape, cells))} \\\\"
