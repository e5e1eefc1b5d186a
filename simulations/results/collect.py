"""Copying settings and history of runs into the folder of results, which is in the repository."""

from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from heterofl_flwr.common.errors import ConfigError, counted
from heterofl_flwr.common.files import to_json, write_atomic
from heterofl_flwr.runs.origin import CHANGED, UNKNOWN
from simulations.results.paper import name_of
from simulations.results.runs import AUTHORS, Run, file_name, one_line, portable, read_run, run_folders

SETTINGS = "settings.json"
HISTORY = "history.jsonl"


def collect(paths: Sequence[Path], into: Path, allowed: Collection[str] = ()) -> list[tuple[Path, Path | str]]:
    """Copy the runs in or below some paths to ``<into>/<data>/<name of the job>``.

    Return each run's folder with its copy, or with the error as text. Three kinds of runs are copied only if
    ``allowed`` has the word: ``unfinished`` for unfinished runs, ``dirty`` for runs whose code is of no commit, and
    ``replace`` for runs that replace another stored run.
    """
    outcomes: list[tuple[Path, Path | str]] = []
    for folder in [folder for path in paths for folder in run_folders(path)]:
        try:
            outcomes.append((folder, _copy(folder, into, allowed)))
        except ConfigError as error:
            outcomes.append((folder, one_line(error)))
    return outcomes


def _copy(folder: Path, into: Path, allowed: Collection[str]) -> Path:
    run = read_run(folder)
    target = into / file_name(run.place[0]) / name_of(run)
    if not run.complete and "unfinished" not in allowed:
        done = f"it has done {run.rounds} of {counted(run.settings.num_rounds, 'round')}"
        raise ConfigError(f"unfinished: {done}; resume it, or copy it as it is with --unfinished")
    if (CHANGED in run.commit or run.commit == UNKNOWN) and "dirty" not in allowed:
        raise ConfigError(
            f"its code is of no commit ({run.commit}), so no one can run it again; commit before a run, "
            f"or copy it with --dirty"
        )
    if (target / SETTINGS).exists() and "replace" not in allowed:
        there = read_run(target)
        if there.started != run.started or there.rounds > run.rounds:  # else it is an earlier part of the same run
            raise ConfigError(f"{target} holds another run of this job and seed; take this one instead with --replace")
    # A folder without settings is not read as a run. So settings are removed first and written last: if the copy is
    # interrupted, no folder has the settings of one run and the history of another.
    (target / SETTINGS).unlink(missing_ok=True)
    # The authors' results: those in the run's folder, else those of the stored run that is replaced.
    if (folder / AUTHORS).exists():
        write_atomic(target / AUTHORS, (folder / AUTHORS).read_bytes())
    write_atomic(target / HISTORY, "".join(f"{to_json(record.to_json())}\n" for record in run.records).encode())
    write_atomic(target / SETTINGS, _settings(run))
    return target


def _settings(run: Run) -> bytes:
    """Return the content of ``settings.json`` without the paths of this machine."""
    flat = {**run.flat, "run.dir": "", "run.resume": False, "data.root": ""}
    settings = {key: portable(value) if isinstance(value, str) else value for key, value in flat.items()}
    about = {**run.about, "command": portable(run.command)}
    content = {"settings": settings, "about": about, **({"model": asdict(run.costs)} if run.costs else {})}
    return f"{to_json(content, indent=2)}\n".encode()
