"""Set runs beside the paper: tables with its numbers and ours, Figures 2 to 11, and the folder of results.

Runs are the folders that ``heterofl run`` and ``simulations.sweep`` leave, finished or not, at any depth below the
folders that are named. Only finished runs with the published settings count; all others are listed with the reason.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.runs.origin import command
from simulations.paper.collect import collect
from simulations.paper.pages import make_pages
from simulations.paper.printed import FILES, VARIABLE, paper_folder
from simulations.program import parser_of, status_of

EXAMPLES = """
examples:
  python -m simulations.paper runs/                              print the tables, and write nothing
  python -m simulations.paper runs/ --out runs/tables            write tables and figures
  python -m simulations.paper runs/ --paper ../shared/paper
  python -m simulations.paper collect runs/ --into results/paper    keep what is small of finished runs
  python -m simulations.paper collect --help
"""
PROGRAM = "simulations.paper"
RUNS = "a run's folder, or one that holds some"


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    part = _collect if words[:1] == ["collect"] else _tables
    return status_of(PROGRAM, lambda: part(words))


def _tables(words: Sequence[str]) -> int:
    parser = parser_of(PROGRAM, __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help=RUNS)
    parser.add_argument(
        "--paper",
        type=Path,
        metavar="FOLDER",
        help=f"folder with {', '.join(FILES)}; default: that of {VARIABLE}, else ../shared/paper if it is there",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="write tables and figures there; default: print the tables"
    )
    options = parser.parse_args(words)
    pages = make_pages(options.runs, paper_folder(options.paper), command())
    print(pages.texts["tables.md"] if options.out is None else pages.write(options.out))
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
    for outcome in outcomes:
        print(f"{outcome.run}: {outcome.reason or f'copied to {outcome.target}'}")
    if not outcomes:
        print("no run folder found; one has a settings.json")
    return 0 if outcomes and not any(outcome.reason for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
