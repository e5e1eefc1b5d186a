"""Add what the tests found with one Python, torch and Flower to the table of versions: ``versions.py JUNIT.xml``.

The versions are those of the environment that this runs in. The table is in ``docs/install.md``, made from
``results/versions.json``; without an argument it is only written again.
"""

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
DATA, PAGE = ROOT / "results" / "versions.json", ROOT / "docs" / "install.md"

REGION = re.compile(r"(?<=<!-- versions -->\n\n).*?(?=\n<!-- end of versions -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    cells = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []
    if arguments:
        found = read_cell(Path(arguments[0]))
        cells = sorted([*(cell for cell in cells if place(cell) != place(found)), found], key=place)
        DATA.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), cells), encoding="utf-8")
    return 0


def read_cell(report: Path) -> dict[str, Any]:
    """Return what was found in this environment."""
    from heterofl_flwr.runs.origin import commit, machine  # the package is installed here

    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "flwr")},
        **read_counts(report),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
    }


def read_counts(report: Path) -> dict[str, int]:
    """Return how many tests passed, failed and were skipped."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    total, errors, failures, skipped = (int(suite.attrib[name]) for name in ("tests", "errors", "failures", "skipped"))
    return {"passed": total - errors - failures - skipped, "failed": errors + failures, "skipped": skipped}


def place(cell: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return a cell's place in the table: the first two numbers of its versions."""
    return tuple(tuple(map(int, cell[name].split(".")[:2])) for name in ("python", "torch", "flwr"))


def filled(page: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the page with the table that these cells make."""
    return REGION.sub(lambda _: table(cells), page)


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the table, with the machine."""
    from heterofl_flwr.runs.origin import short_commit

    flowers = [".".join(map(str, own)) for own in sorted({place(cell)[2] for cell in cells})]
    rows: dict[tuple[object, ...], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(place(cell)[:2], {})[".".join(map(str, place(cell)[2]))] = cell
    lines = [
        f"| Python | PyTorch | {' | '.join(f'Flower {own}' for own in flowers)} | date | commit |",
        f"|{'---|' * (4 + len(flowers))}",
    ]
    for row in rows.values():
        last = max(row.values(), key=lambda cell: cell["date"])
        counts = [describe(row[own]) if own in row else "not run" for own in flowers]
        commits = ", ".join(dict.fromkeys(short_commit(cell["commit"]) for cell in row.values()))
        own = [last["python"], last["torch"].partition("+")[0], *counts, last["date"], commits]
        lines.append(f"| {' | '.join(own)} |")
    machines = ", ".join(sorted({cell["machine"] for cell in cells}))
    return "\n".join([*lines, "", f"Machine: {machines}.", ""])


def describe(cell: Mapping[str, Any]) -> str:
    """Return what was found as text."""
    failed = f"**{cell['failed']} failed**, " if cell["failed"] else ""
    return f"{failed}{cell['passed']} passed" + (f", {cell['skipped']} skipped" if cell["skipped"] else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
