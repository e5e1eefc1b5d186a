"""One example's trial: both its versions run, and what is said of them."""

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.conversions.examples import Edit, Example

ROOT = Path(__file__).parents[2]
OUTCOME = "outcome.json"
LIMITS = {"message": 16, "classic": 20}
"""How many lines a conversion may add, by Flower's interface."""

HEADING = ("example", "API", "lines", "rounds", "sizes", "FedAvg", "HeteroFL", "verdict", "instead")


def convert(example: str, folder: Path, edits: Iterable[Edit]) -> int:
    """Edit the modules of a package in place; return how many lines are new.

    A missing file or place raises a ``ConfigError`` that names the example, the file and the pattern.
    """
    before: dict[Path, str] = {}
    after: dict[Path, str] = {}
    for edit in edits:
        path = folder / f"{edit.file}.py"
        try:
            text = after.get(path) or before.setdefault(path, path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"{example}: {path.name} cannot be read ({error.strerror}), so {edit.pattern!r} cannot be looked for. "
                "Expected the examples of Flower's repository"
            ) from error
        after[path], times = re.subn(edit.pattern, edit.new, text, flags=re.MULTILINE)
        if times != edit.times:
            raise ConfigError(
                f"{example}: {path.name} has {times} places that match {edit.pattern!r}; expected {edit.times}. The "
                "checkout holds another version of the example, so its conversion has to be written anew"
            )
    for path, text in after.items():
        path.write_text(text, encoding="utf-8")
    return sum(count_added(before[path], text) for path, text in after.items())


def count_added(before: str, after: str) -> int:
    """Return how many lines a diff adds; blank ones do not count."""
    old, new = before.splitlines(), after.splitlines()
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return sum(bool(line.strip()) for kind, _, _, first, last in changes if kind != "equal" for line in new[first:last])


def made(example: Example, checkout: Path, folder: Path, edits: Iterable[Edit]) -> tuple[Path, int]:
    """Copy an example into a folder and edit it; return the folder and how many lines are new."""
    source = checkout / "examples" / example.name
    if not source.is_dir():
        raise ConfigError(
            f"{example.short}: there is no folder {source}; expected a checkout of Flower's repository, of which "
            f"examples/{example.name} is enough"
        )
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    return folder, convert(example.short, folder / example.package, edits)


@dataclass(slots=True)
class Outcome:
    """What came of a run: metrics by name and round, the sizes that clients trained, what failed."""

    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def series(self) -> dict[str, list[float]]:
        """Loss and accuracy by round: the server's if it evaluates, else the clients', else those of training."""
        found: dict[str, list[float]] = {}
        for kind, parts in (("loss", ("loss",)), ("accuracy", ("accuracy", "_acc"))):
            for name, values in self.metrics.items():
                if any(part in name for part in parts) and len(values) > 1 and not name.endswith("worst-accuracy"):
                    found.setdefault(kind, [values[key] for key in sorted(values, key=int)])
        return found

    @property
    def learns(self) -> bool:
        """Whether the loss fell by more than a hundredth, or the accuracy, where there is no loss, rose by one."""
        series = self.series
        if "loss" in series:
            return series["loss"][-1] < 0.99 * series["loss"][0]
        return bool(series) and series["accuracy"][-1] > 0.01 + series["accuracy"][0]

    def __str__(self) -> str:
        """Return the first and the last value of loss and accuracy."""
        return ", ".join(f"{name} {values[0]:.3f} to {values[-1]:.3f}" for name, values in self.series.items())


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of an example and of its conversion."""

    example: Example
    added: int
    original: Outcome
    converted: Outcome

    @property
    def faults(self) -> list[str]:
        """What is wrong with the conversion: it is too long, or does not learn where the original does."""
        limit, ours = LIMITS[self.example.api], self.converted
        said = {
            f"more than {limit} lines": self.added > limit,
            f"{len(ours.failures)} clients failed ({''.join(ours.failures[:1])})": bool(ours.failures),
            "one size only": len(ours.sizes) < 2,
            "FedAvg learns, this does not": self.original.learns and not ours.learns,
        }
        return [fault for fault, holds in said.items() if holds]

    def row(self) -> str:
        """Return the row of the table."""
        example, ours = self.example, self.converted
        said = {(True, True): "both learn", (False, False): "neither learns", (False, True): "this one learns"}
        return row(
            [
                example.short,
                example.api,
                str(self.added),
                str(max((int(number) for values in ours.metrics.values() for number in values), default=0)),
                " ".join(f"{size:,}" for size in ours.sizes),
                str(self.original),
                str(ours),
                "; ".join(self.faults) or said[self.original.learns, ours.learns],
                "; ".join(filter(None, [*ours.notes, example.remark])) or "nothing",
            ]
        )


def row(cells: Iterable[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def missing(example: Example) -> list[str]:
    """Return the modules that an example needs and this Python lacks."""
    return [name for name in example.needs if find_spec(name) is None]


def try_example(example: Example, checkout: Path, work: Path, root: str) -> Trial:
    """Run an example and its conversion."""
    original, _ = made(example, checkout, work / example.short / "fedavg", [])
    converted, added = made(example, checkout, work / example.short / "heterofl", example.edits)
    outcomes = [run(example, folder, root) for folder in (original, converted)]
    if example.personal:
        for outcome in outcomes:
            outcome.metrics = {name: of for name, of in outcome.metrics.items() if not name.startswith("server/")}
    return Trial(example, added, *outcomes)


def run(example: Example, folder: Path, root: str) -> Outcome:
    """Run an app in a process of its own; an error has its last words."""
    log = folder / "log.txt"
    own = {  # nothing is asked of the network, and nothing is written elsewhere
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent.parent / "hub"),
        "WANDB_MODE": "disabled",
    }
    root = str(Path(root).resolve()) if root else ""
    words = [sys.executable, "-m", "simulations.conversions.play", example.short, root]
    with log.open("w", encoding="utf-8") as printed:
        environment = {**os.environ, **own}
        done = subprocess.run(words, cwd=folder, env=environment, stdout=printed, stderr=printed, check=False)
    if done.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"])[-1]
        raise HeteroFLError(f"{example.short}: {folder} failed and said {last!r}; all that it said is in {log}")
    return Outcome(**json.loads((folder / OUTCOME).read_text(encoding="utf-8")))
