"""Tables as text: aligned for a terminal, CSV or Markdown."""

import csv
import io
from collections.abc import Sequence

FORMATS = ("table", "csv", "markdown")


def render(header: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Return a table in one of ``FORMATS``. The first column is aligned to the left, the others to the right."""
    if style == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
        return file.getvalue().rstrip("\n")
    if style == "markdown":
        rule = ["---", *["---:"] * (len(header) - 1)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *rows])
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_line(row, widths) for row in [header, *rows]]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join([first.strip().ljust(widths[0]), *others]).rstrip()
