"""Formatting of numbers and tables."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

from heterofl_flwr.common.errors import printable

NOTHING = "-"


def score(name: str, value: float | None) -> str:
    """Format a metric: accuracies and coverage up to 1 by ``percent``, others by ``number``, None as ``-``."""
    if value is None:
        return NOTHING
    # An app's own accuracy may be in percent already.
    return percent(value) if name.endswith(("accuracy", "coverage")) and not value > 1 else number(value)


def score_name(name: str, values: Iterable[float | None]) -> str:
    """Return the name with which ``score`` formats all ``values`` of a metric alike: '' if one of them is above 1.

    An accuracy is then in percent already, so a value such as 0.5 or 1 is no fraction either.
    """
    return "" if any(value is not None and value > 1 for value in values) else name


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction in percent; None and NaN become ``-``."""
    return NOTHING if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def number(value: float) -> str:
    """Format a number with four significant digits; from 10,000 on, as an integer with commas."""
    return f"{value:.4g}" if abs(value) < 9999.5 else f"{value:,.0f}"


def count(value: float) -> str:
    """Format a number as an integer; from 1,000 on, with a suffix (k, M, G, T or P), such as ``1.50 M``."""
    return _scaled(value, ("", "k", "M", "G", "T", "P")).rstrip()


def size(value: float) -> str:
    """Format a number of bytes, such as ``1.50 MB`` (decimal)."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def energy(joules: float) -> str:
    """Format joules, such as ``2.5 J`` or ``1.50 kJ``."""
    return f"{joules:.2g} J" if joules < 99.5 else _scaled(joules, ("J", "kJ", "MJ", "GJ", "TJ"))


def tick(label: str) -> str:
    """Shorten the label of an axis tick: remove ``.0`` and ``.00`` before its unit."""
    return label.replace(".00 ", " ").replace(".0 ", " ")


def duration(seconds: float) -> str:
    """Format seconds; from 1 minute on, as minutes and seconds; from 1 hour on, as hours and minutes."""
    if not 60 <= seconds < math.inf:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def numbers(values: Sequence[int], limit: int = 12) -> str:
    """Format ascending integers as ranges, such as ``1-4, 7``; ranges after the first ``limit`` are only counted."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1][1:] = [value]
        else:
            runs.append([value])
    shown = ["-".join(map(str, run)) for run in runs[:limit]]
    return ", ".join(shown) + (f" and {len(runs) - limit} more" if len(runs) > limit else "")


def _scaled(value: float, units: Sequence[str]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    digits = 0 if step == 0 or abs(value) >= 99.95 else 2 if abs(value) < 9.995 else 1
    return f"{value:.{digits}f} {units[step]}"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: rf"\{letter}" for letter in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "±": r"$\pm$",
    }
)


def render(header: Sequence[str], rows: Sequence[Sequence[str]], style: str) -> str:
    """Return a table as text; ``style`` is ``table`` (plain text), ``csv``, ``markdown`` or ``latex``."""
    if style == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
        return file.getvalue().rstrip("\n")
    if style == "markdown":
        return markdown(header, rows, "---:")
    if style == "latex":
        # LaTeX would read a bracket after the end of a row as its optional argument, so every row begins with braces.
        lines = [f"{{}}{' & '.join(map(latex, row))} \\\\" for row in (header, *rows)]
        columns, rule = rf"{{l{'r' * (len(header) - 1)}}}", r"\hline"
        table = rf"\begin{{tabular}}{columns}", rule, lines[0], rule, *lines[1:], rule, r"\end{tabular}"
        return "\n".join(table)
    # This style goes to a terminal, and names may come from somebody else's run: escape control characters.
    texts = [[printable(cell) for cell in row] for row in (header, *rows)]
    label, *widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = ["  ".join([row[0].strip().ljust(label), *map(str.rjust, row[1:], widths)]).rstrip() for row in texts]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    return text.translate(_LATEX)


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], rule: str = "---") -> str:
    """Return a table in Markdown.

    ``rule`` is the text below the header, such as ``---:``, which sets the alignment of all columns except the first.
    """
    lines = [header, ["---", *[rule] * (len(header) - 1)], *rows]
    texts = (" | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) for line in lines)
    return "\n".join(f"| {text} |" for text in texts)
