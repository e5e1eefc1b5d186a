"""One example's trial: both its versions run, and what is said of them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.conversions.examples import Edit, Example, convert
from simulations.conversions.play import OUTCOME, Job, Outcome

ROOT = Path(__file__).parents[2]
LIMITS = {"message": 16, "classic": 20}
"""How many lines a conversion may add, by Flower's interface."""

HEADING = ("example", "API", "lines", "rounds", "sizes", "FedAvg", "HeteroFL", "verdict", "instead")


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of an example and of its conversion."""

    example: Example
    added: int
    original: Outcome
    converted: Outcome

    @property
    def good(self) -> bool:
        """Whether the conversion is short enough, and learns where the original does."""
        return not self.faults()

    def faults(self) -> list[str]:
        """Return what is wrong with the conversion."""
        found, limit = [], LIMITS[self.example.api]
        if self.added > limit:
            found.append(f"more than {limit} lines")
        if self.converted.failures:
            found.append(f"{len(self.converted.failures)} clients failed ({self.converted.failures[0]})")
        if len(self.converted.sizes) < 2:
            found.append("one size only")
        if learns(self.original) and not learns(self.converted):
            found.append("FedAvg learns, this does not")
        return found

    def cells(self) -> tuple[str, ...]:
        """Return the row of the table."""
        both = learns(self.original), learns(self.converted)
        said = {(True, True): "both learn", (False, False): "neither learns", (False, True): "this one learns"}
        return (
            self.example.short,
            self.example.api,
            str(self.added),
            str(self.converted.rounds),
            " ".join(f"{size:,}" for size in self.converted.sizes),
            curve(self.original),
            curve(self.converted),
            "; ".join(self.faults()) or said[both],
            "; ".join([*self.converted.notes, *filter(None, [self.example.remark])]) or "nothing",
        )


def row(cells: Iterable[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def learns(outcome: Outcome) -> bool:
    """Whether the loss fell by more than a hundredth, or the accuracy, where there is no loss, rose by one."""
    series = series_of(outcome)
    if "loss" in series:
        return series["loss"][-1] < 0.99 * series["loss"][0]
    return bool(series) and series["accuracy"][-1] > 0.01 + series["accuracy"][0]


def curve(outcome: Outcome) -> str:
    """Return the first and the last value of loss and accuracy."""
    return ", ".join(f"{name} {values[0]:.3f} to {values[-1]:.3f}" for name, values in series_of(outcome).items())


def series_of(outcome: Outcome) -> dict[str, list[float]]:
    """Return loss and accuracy by round: the server's if it evaluates, else the clients', else those of training."""
    found: dict[str, list[float]] = {}
    for kind, parts in (("loss", ("loss",)), ("accuracy", ("accuracy", "_acc"))):
        for name, values in outcome.metrics.items():
            if any(part in name for part in parts) and len(values) > 1 and not name.endswith("worst-accuracy"):
                found.setdefault(kind, [values[key] for key in sorted(values, key=int)])
    return found


def missing(example: Example) -> list[str]:
    """Return the modules that an example needs and this Python lacks."""
    return [name for name in example.needs if find_spec(name) is None]


def try_example(example: Example, checkout: Path, work: Path, root: str) -> Trial:
    """Run an example and its conversion."""
    job = job_of(example, root)
    original, _ = made(example, checkout, work / example.short / "fedavg", [])
    converted, added = made(example, checkout, work / example.short / "heterofl", example.edits)
    outcomes = [run(example, folder, job) for folder in (original, converted)]
    if example.personal:
        for outcome in outcomes:
            outcome.metrics = {name: of for name, of in outcome.metrics.items() if not name.startswith("server/")}
    return Trial(example, added, *outcomes)


def job_of(example: Example, root: str, *, repeatable: bool = True) -> Job:
    """Return how an example is run."""
    return Job(
        nodes=example.nodes,
        config=example.config,
        node_config=example.node_config,
        prepare=list(example.prepare),
        root=str(Path(root).resolve()) if root else "",
        rows=example.rows,
        repeatable=repeatable,
    )


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


def run(example: Example, folder: Path, job: Job) -> Outcome:
    """Run an app in a process of its own; refuse one that fails, with its last words."""
    (folder / "job.json").write_text(json.dumps(asdict(job)), encoding="utf-8")
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as printed:
        done = subprocess.run(
            [sys.executable, "-m", "simulations.conversions.play", "job.json"],
            cwd=folder,
            env=environment(folder),
            stdout=printed,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        last = (log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"])[-1]
        raise HeteroFLError(f"{example.short}: {folder} failed and said {last!r}; all that it said is in {log}")
    return Outcome(**json.loads((folder / OUTCOME).read_text(encoding="utf-8")))


def environment(folder: Path) -> Mapping[str, str]:
    """Return an environment in which nothing is asked of the network, and nothing is written elsewhere."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder.parent.parent / "hub"),
        "WANDB_MODE": "disabled",
    }
