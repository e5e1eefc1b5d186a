"""Everything that compares runs with the paper, as files in one folder."""

from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.report.files import remove, write_atomic
from simulations.published import figures
from simulations.published.beside import authors_tables
from simulations.published.cells import read_cells
from simulations.published.curves import panels
from simulations.published.formats import Table, to_latex, to_markdown
from simulations.published.gathering import Gathered, gather
from simulations.published.portable import portable
from simulations.published.rows import to_csv
from simulations.published.tables import further_tables, lists, paper_tables
from simulations.published.tally import Result, count, group_runs, results

HEADER = """# Our runs beside the paper

`{command}` wrote this.

Final: after the last round. Best: in the round whose global metric is best on the test set, which is what the paper
prints; local accuracy is that round's too. Accuracies in percent. Over several seeds: mean ± standard deviation, and
from three seeds on the 95 % interval of the mean by the t distribution. Difference: best less paper. One run, 95 %: the
prediction interval, in which the best round of one more run of ours lies in 95 of 100 cases. The paper prints the best
round of one run, so its number agrees if it lies there, and differs if not; with fewer than three seeds nobody can
tell. Our best is the best of every tenth round, theirs of every round, which favours theirs by a little.
Tables 1 to 3 of the paper are rows of its Tables 7 to 9.
"""
NO_PAPER = (
    "The paper's numbers are not at hand, so nothing is compared: name their folder with --paper or HETEROFL_PAPER."
)


def write(paths: Sequence[Path], paper: Path | None, out: Path, command: str) -> str:
    """Write ``runs.csv``, ``tables.md``, ``tables.tex``, ``figures.md`` and ``figures/``; return what they amount to.

    Parameters
    ----------
    paths : Sequence[Path]
        Folders with runs.
    paper : Path | None
        Folder with the paper's numbers; None to do without.
    out : Path
        Where to.
    command : str
        What asked for it.
    """
    gathered = gather(paths)
    cells = read_cells(paper) if paper else ()
    groups = group_runs(gathered.counted)
    found = results(cells, groups)
    tables = [*paper_tables(found), *authors_tables(groups, cells), *further_tables(groups, cells)]
    status = _status(gathered, found)
    drawn = figures.files(panels(groups))
    texts = {
        "runs.csv": to_csv(gathered, cells),
        "tables.md": HEADER.format(command=portable(command))
        + _markdown(gathered, status, [*tables, *lists(gathered, found)]),
        "tables.tex": "\n".join(map(to_latex, tables)),
    }
    for name, data in {**{name: text.encode() for name, text in texts.items()}, **drawn}.items():
        write_atomic(out / name, data)
    for path in (out / "figures").glob("figure-*"):
        if f"figures/{path.name}" not in drawn:  # its runs are no longer among those that count
            remove(path)
    return "\n".join([*status, f"{', '.join(texts)}, figures.md and {(len(drawn) - 1) // 2} figures in {out}"])


def _status(gathered: Gathered, found: Sequence[Result]) -> list[str]:
    """Return how many runs count, and how much of the paper they repeat."""
    others = {
        "finished but not as published": gathered.different,
        "unfinished": gathered.unfinished,
        "set aside for a later one": gathered.repeated,
        "unreadable": gathered.unreadable,
    }
    more = "".join(f"; {what}: {len(runs)}" for what, runs in others.items() if runs)
    lines = [f"Runs that count: {len(gathered.counted)}{more}"]
    if not found:
        return [*lines, NO_PAPER]
    lines.append(str(count(found)))
    for group in dict.fromkeys(result.cell.group for result in found):
        own = count([result for result in found if result.cell.group == group])
        lines.append(f"{group}: {own}")
    return lines


def _markdown(gathered: Gathered, status: Sequence[str], tables: Sequence[Table]) -> str:
    machines = dict.fromkeys(run.machine for run in gathered.counted)
    commits = dict.fromkeys(run.commit for run in gathered.counted)
    made = [f"Made on: {'; '.join(machines)}", f"With commit: {'; '.join(commits)}"] if gathered.counted else []
    points = "\n".join(f"- {line}" for line in [*status, *made])
    return "\n".join(["", points, "", *map(to_markdown, tables)])
