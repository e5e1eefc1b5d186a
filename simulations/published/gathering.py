"""Many run folders, read, and sorted by whether their numbers count."""

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path

from heterofl_flwr.errors import ConfigError, HeteroFLError
from simulations.published.portable import one_line
from simulations.published.runs import Run, read_run


@dataclass(frozen=True, slots=True)
class Gathered:
    """All runs of some folders, sorted by whether they count.

    Attributes
    ----------
    counted
        Finished, as published, and the only one of its job and seed.
    different
        Finished, but not as published.
    unfinished
        Begun.
    repeated
        Further runs of a job and seed that a later one stands for.
    unreadable
        What is wrong with folders that cannot be read, a line each.
    """

    counted: tuple[Run, ...] = ()
    different: tuple[Run, ...] = ()
    unfinished: tuple[Run, ...] = ()
    repeated: tuple[Run, ...] = ()
    unreadable: tuple[str, ...] = ()


def gather(paths: Sequence[Path]) -> Gathered:
    """Read every run folder in or below some paths; copies of one run are one."""
    runs, unreadable = read_runs(paths)
    finished = [run for run in runs if run.finished]
    published = sorted((run for run in finished if not run.differences), key=_same_job)
    latest = [max(same, key=lambda run: run.started) for _, same in groupby(published, key=_same_job)]
    return Gathered(
        counted=tuple(latest),
        different=tuple(run for run in finished if run.differences),
        unfinished=tuple(run for run in runs if not run.finished),
        repeated=tuple(run for run in published if run not in latest),
        unreadable=tuple(unreadable),
    )


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs in or below some paths, copies of one run once, and what is wrong with other folders."""
    runs: list[Run] = []
    unreadable = []
    for folder in dict.fromkeys(folder for path in paths for folder in run_folders(path)):
        try:
            runs.append(read_run(folder))
        except HeteroFLError as error:
            text = one_line(error)
            unreadable.append(text if str(folder) in text else f"{folder}: {text}")
    return _without_copies(runs), unreadable


def run_folders(path: Path) -> Iterator[Path]:
    """Yield the run folders in or below a path, in the order of their names; hidden folders are left out."""
    if not path.is_dir():
        raise ConfigError(f"{path} is no folder; name the folders that hold runs, such as runs/")
    for settings in sorted(path.rglob("settings.json")):
        if not any(part.startswith(".") for part in settings.relative_to(path).parts):
            yield settings.parent


def _without_copies(runs: Sequence[Run]) -> list[Run]:
    """Return one of several folders that hold the same run, as after ``collect``: the one that came furthest."""
    found: dict[tuple[str, ...], Run] = {}
    for run in runs:
        same = (run.started, run.job.data, run.name)
        if same not in found or (run.finished, run.rounds) > (found[same].finished, found[same].rounds):
            found[same] = run
    return list(found.values())


def _same_job(run: Run) -> tuple[object, ...]:
    return (*astuple(run.job), run.seed)
