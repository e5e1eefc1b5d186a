"""Everything that compares runs with the paper, as files in one folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from simulations.paper import figures
from simulations.paper.claims import claims_page
from simulations.paper.figures import Panel, panels
from simulations.paper.printed import read_cells
from simulations.paper.runs import Gathered, gather
from simulations.paper.tables import authors_table, further_tables, lists, paper_tables, runs_csv
from simulations.paper.verdicts import Result, describe_count, group_runs, results
from simulations.program import write_files
from simulations.results.runs import portable
from simulations.tables import Table, to_latex, to_markdown

HEADER = """# Our runs beside the paper

`{command}` wrote this.

A model is named by its clients' levels: a has all channels, b half of them, and so on to e with a sixteenth; d-e means
that each round draws d or e for each client. IID: accuracy on the whole test set, of clients that have examples of all
classes. Where each client has two classes (non-IID), global is the accuracy on the whole test set, and local the mean
of the clients' accuracies on the test examples of their own classes.

Final: after the last round. Best: in the round whose global metric is best on the test set, which is what the paper
prints; local accuracy is that round's too. Accuracies in percent. Over several seeds: mean ± standard deviation, and
from three seeds on the 95 % interval of the mean by the t distribution. Best of: among so many evaluations of a run.
Difference: best less paper. One run, 95 %: the prediction interval, in which the best round of one more run of ours
lies in 95 of 100 cases, chosen among as many evaluations. The paper prints the best round of one run, so its number
agrees if it lies there, and differs if not; with fewer than three seeds nobody can tell. With three, the interval
reaches five standard deviations to each side, so that a number agrees says only that these runs do not contradict it.
The authors evaluate every round, so theirs is the best of ten times as many, which favours theirs. Some jobs are
printed in two tables, and count in both.
Tables 1 to 3 of the paper are rows of its Tables 7 to 9.
"""
NO_PAPER = (
    "The paper's numbers are not at hand, so nothing is compared: name their folder with --paper or HETEROFL_PAPER."
)


@dataclass(frozen=True, slots=True)
class Pages:
    """What was made of some runs."""

    texts: Mapping[str, str]  # runs.csv, tables.md, tables.tex and claims.md
    panels: Sequence[Panel]
    status: Sequence[str]  # how many runs count, and how much of the paper they repeat, in lines

    def write(self, out: Path) -> str:
        """Write all of it, and ``figures.md`` and ``figures/``; return what it amounts to."""
        drawn = figures.files(self.panels)
        write_files(out, {**{name: text.encode() for name, text in self.texts.items()}, **drawn}, "figures/figure-*")
        made = f"{', '.join(self.texts)} and figures.md in {out}; figures drawn: {(len(drawn) - 1) // 2}"
        return "\n".join([*self.status, made])


def make_pages(paths: Sequence[Path], paper: Path | None, command: str) -> Pages:
    """Return what the runs in some folders amount to beside the paper, whose numbers may be None."""
    gathered = gather(paths)
    cells = read_cells(paper) if paper else ()
    groups = group_runs(gathered.counted)
    found = results(cells, groups)
    tables = [*paper_tables(found), authors_table(groups), *further_tables(groups, cells)]
    tables = [table for table in tables if table.rows]
    status, command = _status(gathered, found), portable(command)
    texts = {
        "runs.csv": runs_csv(gathered, cells),
        "tables.md": HEADER.format(command=command) + _markdown(gathered, status, [*tables, *lists(gathered, found)]),
        "tables.tex": "\n".join(map(to_latex, tables)),
        "claims.md": claims_page(groups, cells, command),
    }
    return Pages(texts, panels(groups), status)


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
    lines.append(describe_count(found))
    for group in dict.fromkeys(result.cell.group for result in found):
        own = [result for result in found if result.cell.group == group]
        lines.append(f"{group}: {describe_count(own)}")
    return lines


def _markdown(gathered: Gathered, status: Sequence[str], tables: Sequence[Table]) -> str:
    machines = dict.fromkeys(run.machine for run in gathered.counted)
    commits = dict.fromkeys(run.commit for run in gathered.counted)
    made = [f"Made on: {'; '.join(machines)}", f"With commit: {'; '.join(commits)}"] if gathered.counted else []
    points = "\n".join(f"- {line}" for line in [*status, *made])
    return "\n".join(["", points, "", *map(to_markdown, tables)])
