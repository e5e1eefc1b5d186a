"""The table of all methods, and the figure: the perplexity of each seed, with the bytes beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from heterofl_flwr.core import formatting
from heterofl_flwr.errors import extra
from simulations.lora.experiment import METHODS
from simulations.statistics import PERPLEXITY, contrast, summarise
from simulations.tables import Table, show_contrast, show_spread, to_markdown

REFERENCE = "counting mean"
DIGITS = 4  # methods differ by thousandths
HEADER = ("adapters", "seeds", "perplexity", f"less {REFERENCE}", "of its rank 2", "bytes down", "bytes up")
Lines = Sequence[Mapping[str, Any]]


def write_page(lines: Lines) -> str:
    """Return the table: means over seeds, and differences to the reference of the same seed."""
    rows: list[tuple[str, ...]] = [("none", *_spread({line["seed"]: line["base"] for line in lines}), "", "", "", "")]
    rows += [_row(lines, name) for name in _names(lines)]
    commits = ", ".join(sorted({commit[:7] for line in lines for commit in line["commits"]}))
    hours = sum(line["seconds"] for line in lines) / 3600
    note = f"Means ± standard deviations over seeds; differences with 95 % intervals. {hours:.1f} hours of rounds, on "
    note += f"{', '.join(sorted({machine for line in lines for machine in line['machines']}))}; commit {commits}."
    return to_markdown(Table("lora", "Adapters of unequal rank on WikiText-2", HEADER, tuple(rows), note))


def _row(lines: Lines, name: str) -> tuple[str, ...]:
    own = [line for line in lines if line["method"] == name]
    found = {line["seed"]: line["metrics"]["global-perplexity"] for line in own}
    small = {line["seed"]: line["metrics"].get("rank-2-perplexity") for line in own}
    reference = {line["seed"]: line["metrics"]["global-perplexity"] for line in lines if line["method"] == REFERENCE}
    pairs = [found[seed] - reference[seed] for seed in found if seed in reference and name != REFERENCE]
    beside = show_contrast(*contrast([(1.0, summarise(pairs))]), DIGITS) if pairs else ""
    sizes = [formatting.size(sum(line["bytes"][way] for line in own) / len(own)) for way in ("down", "up")]
    return (name, *_spread(found), beside, "" if None in small.values() else _spread(small)[1], *sizes)


def _spread(by_seed: Mapping[int, float]) -> tuple[str, str]:
    """Return the number of seeds, and mean and deviation over them."""
    return str(len(by_seed)), show_spread(summarise(list(by_seed.values()), PERPLEXITY), DIGITS)


def _names(lines: Lines) -> list[str]:
    return [name for name in METHODS if any(line["method"] == name for line in lines)]


def draw(lines: Lines) -> bytes:
    """Return an SVG file with a row for each method, which names its bytes, and a line for each seed."""
    with extra("report"):
        from heterofl_flwr.report.drawing import add_legend, new_axes, series, to_svg_file

    figure, axes = new_axes("perplexity", "")
    figure.set_figwidth(5.2)  # the methods' names need the room
    names = _names(lines)
    for number, seed in enumerate(sorted({line["seed"] for line in lines})):
        own = {line["method"]: line["metrics"]["global-perplexity"] for line in lines if line["seed"] == seed}
        colour, dashes = series(number)
        rows = [row for row, name in enumerate(names) if name in own]
        values = [own[names[row]] for row in rows]
        axes.plot(values, rows, dashes, color=colour, label=f"seed {seed}", marker="o", markersize=4, linewidth=1)
    axes.set_yticks(range(len(names)), [f"{name}, {_spent(lines, name)}" for name in names])
    axes.invert_yaxis()
    axes.locator_params(axis="x", nbins=6)
    add_legend(axes)
    return to_svg_file(figure, "lora")


def _spent(lines: Lines, name: str) -> str:
    """Return the mean of what the clients of a federation got and sent."""
    spent = [sum(line["bytes"].values()) for line in lines if line["method"] == name]
    return formatting.size(sum(spent) / len(spent))
