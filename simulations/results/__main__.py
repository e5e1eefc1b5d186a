"""Make tables, values and figures of the results of runs, with the paper's numbers for jobs of the paper.

Runs are the folders of ``heterofl run`` and ``heterofl sweep``, at any depth below the named folders. Runs that differ
only in the seed are one configuration. Configurations with equal data set and split are compared with one another.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from heterofl_flwr.app.argument_types import read_count
from heterofl_flwr.app.trust import add_trust, check_trust
from heterofl_flwr.common.errors import ConfigError, counted
from heterofl_flwr.common.files import remove, write_atomic
from heterofl_flwr.core.formatting import render
from heterofl_flwr.runs.origin import short_commit
from heterofl_flwr.settings.method_name import method_name
from simulations.program import chosen, parser_of, status_of, text_beside
from simulations.results import figures, tables
from simulations.results.claims import claims_page
from simulations.results.collect import collect
from simulations.results.configurations import Configuration, Places, Reached, configurations, metrics_of, published
from simulations.results.levels import AGAINST, costs_table, levels_table
from simulations.results.paper import FILES, VARIABLE, Cell, Key, Printed, by_job, paper_folder, read_cells
from simulations.results.runs import Run, file_name, portable, read_runs
from simulations.results.spent import EXAMPLES, axes_of
from simulations.results.tables import Table, authors_table, to_latex, to_markdown
from simulations.svg import to_svg

NO_PAPER = "Without the paper's numbers, nothing is compared: name their folder with --paper or HETEROFL_PAPER."
PROGRAM = "simulations.results"
RUNS = "a run's folder, or one that holds some"


@dataclass(frozen=True, slots=True)
class Found:
    """The configurations in some folders, and the numbers that the paper prints."""

    places: Places
    runs: Sequence[Run]  # of all configurations
    left_out: Sequence[tuple[str, str]]  # names of folders whose runs are not used, with the reason
    cells: Sequence[Cell]  # empty without the paper's numbers
    printed: Printed  # the same by job and metric


def read(paths: Sequence[Path], paper: Path | None) -> Found:
    """Return the configurations in some folders, the folders whose runs are not used, and the paper's numbers."""
    runs, unreadable = read_runs(paths)
    places = configurations(runs)
    used = [run for own in places.values() for one in own for run in one.runs]
    unfinished = "unfinished, {0.rounds} of {0.settings.num_rounds} rounds"
    why = {True: "a later run has its settings and seed", False: unfinished}
    left_out = [(run.path.name, why[run.finished].format(run)) for run in runs if run not in used]
    left_out += [("unreadable", portable(line)) for line in unreadable]
    if not places:
        said = "; ".join(": ".join(line) for line in left_out) or "there is none at all"
        raise ConfigError(f"no finished run in {', '.join(map(str, paths))}: {said}")
    cells = read_cells(paper) if paper else ()
    return Found(places, used, left_out, cells, by_job(cells))


def show(made: Mapping[tuple[str, str], Sequence[Table]]) -> str:
    """Return the first two tables of each data set and split as text."""
    parts = []
    for place, own in made.items():
        parts += [", ".join(place), *(render(table.header, table.rows, "table") for table in own[:2] if table.rows)]
    return "\n\n".join(parts)


def write(found: Found, made: Mapping[tuple[str, str], Sequence[Table]], options: argparse.Namespace) -> str:
    """Write tables, values, claims and figures; return a line with the number of files."""
    places, jobs = found.places, published(found.places)
    words = [portable(str(path)) for path in options.runs] + ["--curves"] * options.curves
    words += [f"--target {target:g}" for target in options.target] + [f"--last {options.last}"] * (options.last > 1)
    words += [f"--against '{options.against}'"] * (options.against != AGAINST) + ["--trust"] * options.trust
    command = f"python -m {PROGRAM} {' '.join(words)} --out FOLDER"  # the folder itself changes nothing
    header = "\n".join(text_beside(__file__, name) for name in ("tables.md", *(["paper.md"] if jobs else [])))
    files = {"runs.csv": tables.runs_csv(places, found.printed)}
    files |= {"curves.csv": tables.curves_csv(places)} if options.curves else {}
    drawn: dict[str, Figure] = {}
    parts = [header.format(command=command), _status(found, jobs)]
    latex = []
    for place, own in places.items():
        filled = [table for table in made[place] if table.rows]
        curves = dict(_figures(place, own, options.last) if options.curves else ())
        parts += [f"## {', '.join(place)}\n", *(f"#{to_markdown(table)}" for table in filled), *map(_image, curves)]
        latex += [_of_place(table, place) for table in filled]
        drawn |= curves
    if jobs:
        files["claims.md"] = claims_page(jobs, found.printed, command)
        beside = [table for table in (authors_table(jobs),) if table.rows]
        parts += [*map(to_markdown, beside), *_paper_figures(jobs, drawn)]
        latex += beside
    if found.left_out:
        parts.append(to_markdown(Table("", "Left out", ("folder", "why"), tuple(found.left_out))))
    files |= {"tables.md": "\n".join(parts), "tables.tex": "\n".join(map(to_latex, latex))}
    content = {name: text.encode() for name, text in files.items()}
    content |= {name: to_svg(figure, name) for name, figure in drawn.items()}
    for name, data in content.items():
        write_atomic(options.out / name, data)
    for stale in set(options.out.glob("figures/*.svg")) - {options.out / name for name in content}:
        remove(stale)
    number = sum(len(own) for own in places.values())
    what = f"{counted(number, 'configuration')} on {counted(len(places), 'split')}"
    return f"{what}: {len(content)} files in {options.out}"


def _of_place(table: Table, place: tuple[str, str]) -> Table:
    """Return the table with its data set and split in the title and the label, for one document with all tables."""
    label = "-".join([table.label, *map(file_name, place)])
    return replace(table, label=label, title=f"{table.title}, {', '.join(place)}")


def _status(found: Found, jobs: Mapping[Key, Reached]) -> str:
    """Return lines on the runs: how many are used, how many of the paper's jobs they repeat, machines and commits."""
    lines = [f"Runs that count: {len(found.runs)}; left out: {len(found.left_out)}"]
    if jobs:
        lines += tables.count_verdicts(found.cells, jobs) if found.cells else [NO_PAPER]
    lines.append(f"Made on: {'; '.join(dict.fromkeys(run.machine for run in found.runs))}")
    commits = sorted({short_commit(own) for run in found.runs for own in run.commit.split(" + ")})
    return "".join(f"- {line}\n" for line in [*lines, f"With commits: {', '.join(commits)}"])


def _tables(own: Sequence[Configuration], printed: Printed, options: argparse.Namespace) -> Iterator[Table]:
    """Yield the tables of a data set and split; some may have no rows."""
    metrics = metrics_of(own)
    yield tables.reached_table(own, printed)
    yield from (levels_table(own, metric, options.last, options.against) for metric in metrics[:1])
    yield costs_table(own)
    yield tables.spent_table(own)
    yield from (tables.target_table(own, metric, target) for metric in metrics[:1] for target in options.target)


def _figures(place: tuple[str, str], own: Sequence[Configuration], last: int) -> Iterator[tuple[str, Figure]]:
    """Yield names and figures of a data set and split."""
    metrics = metrics_of(own)
    drawn = {f"{metric}-levels": figures.draw_levels(own, metric, last) for metric in metrics}
    axes = product(metrics, axes_of(own))
    drawn |= {f"{metric}-{axis}": figures.draw_curves(own, metric, axis) for metric, axis in axes}
    for what, figure in drawn.items():
        if figure is not None:
            yield f"figures/{'-'.join(map(file_name, place))}-{what}.svg", figure


def _paper_figures(jobs: Mapping[Key, Reached], drawn: dict[str, Figure]) -> Iterator[str]:
    """Yield the text about Figures 2 to 11, and add the figures that have points to ``drawn``."""
    for panel in figures.panels():
        if figure := figures.draw_panel(panel, jobs):
            name = f"figures/figure-{panel.name}.svg"
            drawn[name] = figure
            yield f"## {panel.title}\n\n{_image(name)}"
            missing = (job.mix for own in panel.curves.values() for job in own if (job, panel.metric) not in jobs)
            yield f"Without a run: {', '.join(dict.fromkeys(missing)) or 'none'}.\n"


def _image(name: str) -> str:
    return f"![{Path(name).stem.replace('-', ' ')}]({name})\n"


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    part = _collect if words[:1] == ["collect"] else _results
    return status_of(PROGRAM, lambda: part(words))


def _results(words: Sequence[str]) -> int:
    parser = parser_of(PROGRAM, __doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help=RUNS)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write tables, values, claims and figures there")
    parser.add_argument("--curves", action="store_true", help="with --out: draw results over each kind of cost")
    when = "with --out: when did each configuration reach this global accuracy? May be given several times"
    parser.add_argument("--target", type=float, action="append", default=[], metavar="VALUE", help=when)
    last = "evaluations in the mean that is a level's result; runs with fewer are left out; default: %(default)s"
    parser.add_argument("--last", type=read_count, default=1, metavar="NUMBER", help=last)
    less = "method with which the levels of all other methods are compared, in the same mix; default: %(default)s"
    parser.add_argument("--against", default=AGAINST, metavar="METHOD", help=less)
    where = f"folder with {', '.join(FILES)}; default: that of {VARIABLE}, else ../shared/paper if it is there"
    parser.add_argument("--paper", type=Path, metavar="FOLDER", help=where)
    add_trust(parser)
    options = parser.parse_args(words)
    if options.out is None and (options.target or options.curves):
        raise ConfigError("--target and --curves have no effect without --out: name a folder for the tables")
    found = read(options.runs, paper_folder(options.paper))
    for run in found.runs:  # tables have the multiplications, for which data sets may be loaded
        check_trust({"data.name": run.settings.data.name}, run.path, trusted=options.trust, named=EXAMPLES)
    methods = {method_name(run.settings) for run in found.runs}
    chosen("method", [options.against], sorted({*methods, AGAINST}))
    made = {place: list(_tables(own, found.printed, options)) for place, own in found.places.items()}
    print(show(made))
    for name, why in found.left_out:
        print(f"left out: {name}: {why}", file=sys.stderr)
    if options.out:
        if not found.cells and published(found.places):
            print(NO_PAPER, file=sys.stderr)
        print(write(found, made, options), file=sys.stderr)
    return 0


def _collect(words: Sequence[str]) -> int:
    what = (
        "Copy settings and history of runs to <into>/<data>/<job>, without the folders of this machine. A run that is "
        "unfinished, or whose code was of no commit, is refused. Exit code 1 if a run was not copied."
    )
    parser = parser_of(f"{PROGRAM} collect", what)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help=RUNS)
    parser.add_argument("--into", type=Path, required=True, metavar="FOLDER", help="such as results/paper")
    for name, meaning in {
        "unfinished": "copy runs that did not do all rounds, too",
        "dirty": "copy runs whose code was changed since its commit, too",
        "replace": "put a run in the place of another of its job and seed",
    }.items():
        parser.add_argument(f"--{name}", action="append_const", dest="allowed", const=name, default=[], help=meaning)
    options = parser.parse_args(words[1:])
    outcomes = collect(options.runs, options.into, options.allowed)
    for folder, outcome in outcomes:
        print(f"{folder}: {f'copied to {outcome}' if isinstance(outcome, Path) else outcome}")
    if not outcomes:
        print("no run folder found; one has a settings.json")
    return 0 if outcomes and all(isinstance(outcome, Path) for _, outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
