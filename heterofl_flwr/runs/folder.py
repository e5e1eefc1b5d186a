"""``RunFolder``: the folder of a run."""

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.files import (
    CLIENT_STATES,
    acquire_lock,
    append_line,
    files_by_round,
    reading,
    remove,
    to_json,
    write_atomic,
)
from heterofl_flwr.federation.callbacks import RunState
from heterofl_flwr.federation.round_record import RoundRecord
from heterofl_flwr.runs import checkpoint as checkpoints
from heterofl_flwr.runs.costs import COSTS, ModelCosts
from heterofl_flwr.runs.history import read_history
from heterofl_flwr.runs.origin import add_start
from heterofl_flwr.settings.validate import flatten
from heterofl_flwr.stages.privacy_accountant import Releases

Complete = Callable[[Mapping[str, object]], Mapping[str, object]]


def new_path(name: str) -> Path:
    """Return a path below ``runs`` that contains ``name`` and the time."""
    # Random digits give runs that begin in the same second different paths.
    return Path("runs", f"{Path(name).name.replace(':', '-')}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")


class RunFolder:
    """The folder of one run.

    ==================  ================================================================================
    ``.lock``           locked while a process runs in the folder; empty
    ``settings.json``   settings of the run, facts about its starts, and costs of its models
    ``history.jsonl``   one ``RoundRecord`` a line
    ``classes.json``    counts by class: each client's examples (in simulations), predictions of the global model
    ``checkpoint/``     the newest two checkpoints
    ``privacy.json``    how many noisy models and moments were published, including those of repeated rounds
    ``events/``         events for TensorBoard
    ``logs/``           the log of ``heterofl run`` or of a sweep's job
    ``models/``         each level's final model, in safetensors and JSON
    ``exports/``        models that ``heterofl export`` wrote
    ``clients/``        state of clients (personal parameters, stages), by run, client and round
    ``figures/``        figures of the report in PNG
    ``report.html``     the report
    ==================  ================================================================================

    Parameters
    ----------
    path : str | Path
        Path of the folder. It is created when something is written. A relative path is below the current folder of the
        process; with ``flwr run`` this is the folder in which its SuperLink was started.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # messages name it to users who are in another folder than the process
        self.classes = self.path / "classes.json"
        self.events = self.path / "events"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.clients = self.path / "clients"
        self.models = self.path / "models"
        self._settings = self.path / "settings.json"
        self._history = self.path / "history.jsonl"
        self._checkpoints = self.path / "checkpoint"
        self._privacy = self.path / "privacy.json"
        self._lock: FileLock | None = None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Context manager that locks the folder; raise ``ConfigError`` if another process has locked it."""
        self.refuse_links()
        self._lock = acquire_lock(self.path)
        try:
            yield
        finally:
            self.unlock()

    def hold(self) -> None:
        """Lock the folder until ``unlock`` is called. Several objects of one process can hold the lock."""
        self.refuse_links()
        self._lock = self._lock or acquire_lock(self.path, shared=True)

    def unlock(self) -> None:
        """Release the lock, if any."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def start(
        self,
        settings: Mapping[str, object],
        *,
        resume: bool = False,
        may_differ: Sequence[str] = (),
        about: Mapping[str, object] | None = None,
        complete: Complete = dict,
    ) -> None:
        """Write the settings of a new run, or prepare the folder to resume the run in it.

        The folder stays locked. A ``Recorder`` unlocks it at the end of the run, also after an error.

        Parameters
        ----------
        settings : Mapping[str, object]
            All settings of the run; nested settings have dotted keys.
        resume : bool
            Whether to resume the run in the folder from its newest checkpoint. Without a checkpoint, the run's records
            are removed, and the run starts anew.
        may_differ : Sequence[str]
            Settings (dotted keys) that a resumed run may change, such as the number of rounds.
        about : Mapping[str, object] | None
            More facts for the report, such as ``title`` and ``device``.
        complete : Callable[[Mapping[str, object]], Mapping[str, object]]
            Function that takes the stored settings and returns them with the settings that an older version did not
            store.

        Raises
        ------
        ConfigError
            If the folder has a run although ``resume`` is False, if it has no run although ``resume`` is True, if
            settings that are not in ``may_differ`` differ, if the folder has links, or if another process has locked
            it. The files of the run are then unchanged.
        """
        self.check(settings, resume=resume, may_differ=may_differ, complete=complete)
        self.hold()
        if resume and not self.has_checkpoint:
            self.rewind(0)
        before = self._read() if resume else {}
        self._write({**before, "settings": settings, "about": add_start(before.get("about", {}), about or {})})

    def check(
        self,
        settings: Mapping[str, object],
        *,
        resume: bool = False,
        may_differ: Sequence[str] = (),
        complete: Complete = dict,
    ) -> None:
        """Raise the ``ConfigError`` that ``start`` would raise, except for a locked folder; write nothing."""
        self.refuse_links()
        if not self.started:
            if resume:
                raise ConfigError(f"{self.path} holds no run to resume: check the folder, or start without resume")
            return
        # Converted to JSON and back, so that tuples equal lists, and paths equal their text.
        new, old = (flatten(json.loads(to_json(values))) for values in (settings, complete(self.settings())))
        differences = "; ".join(
            f"{key} was {_show(old, key)} and is {_show(new, key)}"
            for key in {**old, **new}
            if key not in may_differ and (key in old, old.get(key)) != (key in new, new.get(key))
        )
        if resume and differences:
            raise ConfigError(
                f"the run in {self.path} had other settings: {differences}. "
                f"Resume it with its own settings, or start a new run in another folder"
            )
        if differences:
            raise ConfigError(
                f"{self.path} holds another run: {differences}. Choose another folder, or remove this one"
            )
        if not resume and self.has_run:
            raise ConfigError(
                f"{self.path} holds a run with these settings already: resume it (heterofl run --resume, flwr run with "
                f"run.resume=true, RunFolder.start(resume=True)), or choose another folder"
            )

    @property
    def started(self) -> bool:
        """Whether the folder has the settings of a run."""
        return self._settings.exists()

    @property
    def has_run(self) -> bool:
        """Whether the folder has the history or a checkpoint of a run."""
        return self._history.exists() or self.has_checkpoint

    @property
    def has_checkpoint(self) -> bool:
        """Whether the folder has a checkpoint."""
        return bool(files_by_round(self._checkpoints, checkpoints.PATTERN))

    def settings(self) -> dict[str, object]:
        """Return the run's settings."""
        return dict(self._read()["settings"])

    def about(self) -> dict[str, Any]:
        """Return facts about the run, such as command, versions, and time of each start."""
        return dict(self._read()["about"])

    def note(self, **facts: object) -> None:
        """Store more facts about the run, which ``about`` returns."""
        content = self._read()
        self._write({**content, "about": {**content["about"], **facts}})

    def write_costs(self, costs: ModelCosts) -> None:
        """Write the costs of the models."""
        self._write({**self._read(), "model": asdict(costs)})

    def costs(self) -> ModelCosts | None:
        """Return the costs of the models; None if they were not written."""
        model = self._read().get("model")
        with reading(self._settings, "remove its model part: reports then say nothing of costs"):
            return None if model is None else COSTS.validate_python(model)

    def append(self, record: RoundRecord) -> None:
        """Add the record of a round to the history."""
        append_line(self._history, to_json(record.to_json()))

    def history(self) -> list[RoundRecord]:
        """Return the records of all rounds."""
        return read_history(self._history)

    def rewind(self, last_round: int) -> None:
        """Remove records, checkpoints and client states of rounds after ``last_round``.

        Raise ``ConfigError`` if ``last_round`` is above 0 and the history has no record of this round.
        """
        self.refuse_links()
        records = [record for record in self.history() if record.server_round <= last_round]
        if (final := records[-1].server_round if records else 0) != last_round:
            raise ConfigError(
                f"{self._history} ends with round {final}, but the run is to go on after round {last_round}: put back "
                f"a copy of the file, or start the run anew in another folder"
            )
        write_atomic(self._history, "".join(f"{to_json(record.to_json())}\n" for record in records).encode())
        later = list(files_by_round(self._checkpoints, checkpoints.PATTERN).items())
        for folder, *_ in os.walk(self.clients):
            later += files_by_round(Path(folder), CLIENT_STATES).items()
        for path in [path for server_round, path in later if server_round > last_round]:
            remove(path)

    def drop_models(self) -> None:
        """Remove the final models."""
        for path in self.models.glob("*"):
            if path.suffix in (".json", ".safetensors"):
                remove(path)

    def releases(self) -> list[Releases]:
        """Return how many noisy models and moments the run published, by kind, noise, clip and source."""
        if not self._privacy.exists():
            return []
        with reading(self._privacy, "restore it from a copy: no other file says how much privacy the run spent"):
            return checkpoints.RELEASES.validate_python(json.loads(self._privacy.read_text(encoding="utf-8")))

    def write_releases(self, releases: Sequence[Releases]) -> None:
        """Write ``privacy.json``: how many noisy models and moments were published."""
        write_atomic(self._privacy, f"{to_json([asdict(entry) for entry in releases], indent=2)}\n".encode())

    def save_checkpoint(self, checkpoint: RunState) -> None:
        """Write a checkpoint atomically, and remove all but the newest two."""
        checkpoints.save_checkpoint(self._checkpoints, checkpoint)

    def load_checkpoint(self) -> RunState:
        """Return the newest undamaged checkpoint up to the history's last round; without a history, of any round.

        Raise ``ConfigError`` if there is no such checkpoint.
        """
        records = self.history()
        return checkpoints.load_checkpoint(self._checkpoints, records[-1].server_round if records else None)

    def refuse_links(self) -> None:
        """Raise ``ConfigError`` if the folder has links, through which a run would change files elsewhere."""
        links = [str(path.relative_to(self.path)) for path in self.path.rglob("*") if path.is_symlink()]
        opened = (self._history, self.path / ".lock", *self.path.glob("logs/*"))
        links += [str(path.relative_to(self.path)) for path in opened if path.is_file() and path.stat().st_nlink > 1]
        if links:
            raise ConfigError(f"{self.path} has links ({', '.join(links)}): expected files and folders of its own")

    def _read(self) -> dict[str, Any]:
        if not self.started:
            runs = sorted(self.path.glob(f"*/{self._settings.name}"))
            several = f"; the folders in it are runs: name them, {self.path}/*/" if runs else ""
            raise ConfigError(f"{self.path} is no folder of a run: it has no {self._settings.name}{several}")
        self.refuse_links()
        with reading(self._settings, "remove the folder or restore it"):
            content = json.loads(self._settings.read_text(encoding="utf-8"))
            return {**content, "settings": dict(content["settings"]), "about": dict(content["about"])}

    def _write(self, content: Mapping[str, object]) -> None:
        write_atomic(self._settings, f"{to_json(content, indent=2)}\n".encode())


def _show(values: Mapping[str, object], key: str) -> str:
    return to_json(values[key]) if key in values else "not set"
