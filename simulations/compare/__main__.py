"""Set methods beside one another: what each reached on one split, and for how many rounds, bytes and multiplications.

Runs are the folders that ``heterofl run`` and ``simulations.sweep`` leave, at any depth below the named folders.
Finished runs on the same data and split are compared; runs that differ in nothing but the seed are one method.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.report.drawing import to_svg_file
from heterofl_flwr.runs.files import remove, write_atomic
from heterofl_flwr.runs.origin import command
from simulations.compare.curves import axes_of, draw
from simulations.compare.methods import Contestant, contestants
from simulations.compare.tables import metrics_of, reached_table, sources, target_table, targets_for, to_csv
from simulations.paper.runs import file_name, portable, read_runs
from simulations.paper.tables import to_markdown
from simulations.program import parser_of, status_of

HEADER = """# Methods compared

`{command}` wrote this.

Means over seeds, ± the standard deviation. Bytes are those of the training messages, measured on them, both ways.
Multiplications are those of all clients' training, where all have equally many examples; a backward pass counts as two
forward passes. Seconds are those of the machine that ran it, evaluation included. Where each client has a model of its
own (Standalone, LG-FedAvg, FedH2L), global accuracy is the mean of theirs on the whole test set.
"""


def write(paths: Sequence[Path], out: Path, targets: Sequence[float], command: str) -> str:
    """Write ``compare.md``, a file of values for each split, and figures; return a line that says how many."""
    runs, unreadable = read_runs(paths)
    found = contestants(runs)
    if not found:
        raise ConfigError(
            f"no finished run in {', '.join(map(str, paths))}: {len(runs)} unfinished, {len(unreadable)} unreadable"
        )
    files: dict[str, bytes] = {}
    parts = [HEADER.format(command=portable(command))]
    for (data, split), own in found.items():
        section, drawn = _section(data, split, own, targets)
        parts.append(section)
        files |= drawn
    parts += [f"- left out, unfinished: {run.name}" for run in runs if not run.finished]
    parts += [f"- left out, unreadable: {portable(line)}" for line in unreadable]
    files["compare.md"] = ("\n".join(parts) + "\n").encode()
    for name, content in files.items():
        write_atomic(out / name, content)
    for path in (out / "figures").glob("compare-*"):
        if f"figures/{path.name}" not in files:  # its runs are gone
            remove(path)
    number = sum(len(own) for own in found.values())
    return f"{number} methods on {len(found)} splits: {len(files)} files in {out}"


def _section(
    data: str, split: str, own: Sequence[Contestant], targets: Sequence[float]
) -> tuple[str, dict[str, bytes]]:
    """Return the text about one split, and its files."""
    place, metrics = f"{file_name(data)}-{file_name(split)}", metrics_of(own)
    files = {f"compare-{place}.csv": to_csv(own, data, split).encode()}
    text = [f"## {data}, {split}\n", to_markdown(reached_table(own)).partition("\n\n")[2]]
    for metric in metrics[:1]:
        text += [f"#{to_markdown(target_table(own, metric, target))}" for target in targets_for(metric, targets)]
    for metric in metrics:
        for axis in axes_of(own):
            if figure := draw(own, metric, axis):
                name = f"figures/compare-{place}-{metric}-{axis}.svg"
                files[name] = to_svg_file(figure, name)
                text.append(f"![{metric.replace('-', ' ')} over {axis}]({name})\n")
    text += ["Made by, for the first seed:\n", *sources(own), ""]
    return "\n".join(text), files


EXAMPLES = """
examples:
  python -m simulations.sweep -m experiment=compare data=digits seed=0,1,2
  python -m simulations.compare runs/jobs --out runs/compare
  python -m simulations.compare runs/jobs --target 0.8 --target 0.95
"""
PROGRAM = "simulations.compare"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(PROGRAM, __doc__, EXAMPLES)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUNS", help="a run's folder, or one that holds some")
    parser.add_argument(
        "--out", type=Path, default=Path("runs", "compare"), metavar="FOLDER", help="default: %(default)s"
    )
    parser.add_argument(
        "--target",
        type=float,
        action="append",
        default=[],
        metavar="VALUE",
        help="when did each method reach this? Global accuracy, or the data set's own metric; may be given several "
        "times; default: 0.5 and 0.9",
    )
    options = parser.parse_args(arguments)
    return status_of(PROGRAM, lambda: print(write(options.runs, options.out, options.target, command())))


if __name__ == "__main__":
    sys.exit(main())
