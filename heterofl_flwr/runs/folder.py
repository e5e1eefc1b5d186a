"""One folder a run: its settings, history, checkpoints, models and report."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from heterofl_flwr import __version__
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.federation.privacy import KINDS
from heterofl_flwr.federation.records import RoundRecord, State
from heterofl_flwr.runs import checkpoint as checkpoints
from heterofl_flwr.runs import history
from heterofl_flwr.runs.checkpoint import Checkpoint, pack
from heterofl_flwr.runs.class_split import Deal
from heterofl_flwr.runs.costs import ModelCosts
from heterofl_flwr.runs.files import held, remove, states_in, to_json, write_atomic
from heterofl_flwr.runs.origin import command, commit, machine


class RunFolder:
    """The folder of one run.

    ==================  ================================================================================
    ``settings.json``   the run's settings, how it was started, and what its models cost
    ``history.jsonl``   one ``RoundRecord`` a line
    ``checkpoint/``     the last two checkpoints
    ``privacy.json``    where noise is added, how often models and moments were released, those of repeated rounds too
    ``events/``         for TensorBoard
    ``models/``         each level's final model, in safetensors and JSON
    ``exports/``        what ``heterofl export`` made of the models
    ``clients/``        what clients keep for themselves, by client and round, where parameters are not shared
    ``figures/``        PNG
    ``deal.csv``        how many examples of each class each client was dealt
    ``report.html``     the page
    ==================  ================================================================================

    Parameters
    ----------
    path : str | Path
        The folder; it is made when something is first written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.events = self.path / "events"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"
        self.clients = self.path / "clients"
        self.models = self.path / "models"
        self._settings = self.path / "settings.json"
        self._history = self.path / "history.jsonl"
        self._checkpoints = self.path / "checkpoint"
        self._deal = self.path / "deal.csv"
        self._privacy = self.path / "privacy.json"

    def held(self) -> AbstractContextManager[None]:
        """Keep other processes from running in the folder; ``ConfigError`` where one does."""
        return held(self.path)

    def start(
        self,
        settings: Mapping[str, object],
        *,
        resume: bool = False,
        may_differ: Sequence[str] = (),
        about: Mapping[str, object] | None = None,
        complete: Callable[[Mapping[str, Any]], Mapping[str, object]] = dict,
    ) -> None:
        """Make the folder ready for a run, or take up the run that is in it; rounds without a checkpoint are forgotten.

        Parameters
        ----------
        settings : Mapping[str, object]
            All settings of the run; nested ones are named by dotted keys.
        resume : bool
            Whether to go on from the checkpoint that is there, or, where there is none yet, from the beginning.
        may_differ : Sequence[str]
            Settings (dotted keys) that a resumed run may change, such as the number of rounds.
        about : Mapping[str, object] | None
            More that the report shall tell: a ``title``, the ``device``.
        complete : Callable[[Mapping[str, Any]], Mapping[str, object]]
            Returns the settings of the run that is there with those that it could not know yet.

        Raises
        ------
        ConfigError
            If there is a run and it is not to be resumed, if there is none and it is, or if settings differ. The folder
            is then as it was.
        """
        self.check(settings, resume=resume, may_differ=may_differ, complete=complete)
        if resume and not self.has_checkpoint:
            self.rewind(0)
        then = self.about() if resume else {}
        starts = [*then.get("starts", []), datetime.now().astimezone().isoformat(timespec="seconds")]
        facts = {**then, "command": command(), **(about or {}), "starts": starts, "versions": _versions()}
        for name, now in (("commits", commit()), ("machines", machine())):
            facts[name] = [*then.get(name, []), now]  # one a start, as the times
        self._write({**(self._read() if resume else {}), "settings": settings, "about": facts})

    def check(
        self,
        settings: Mapping[str, object],
        *,
        resume: bool = False,
        may_differ: Sequence[str] = (),
        complete: Callable[[Mapping[str, Any]], Mapping[str, object]] = dict,
    ) -> None:
        """Raise the ``ConfigError`` that ``start`` would raise; nothing is written."""
        differences = self._differences(settings, complete, may_differ) if self.started else []
        if resume:
            self._check_resumable(differences)
        elif self.started and (differences or self._history.exists() or self.has_checkpoint):
            raise ConfigError(self._occupied(differences))

    @property
    def started(self) -> bool:
        """Whether the folder has the settings of a run."""
        return self._settings.exists()

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is any checkpoint, whole or not."""
        return checkpoints.has_checkpoint(self._checkpoints)

    def settings(self) -> dict[str, object]:
        """Return the run's settings."""
        return dict(self._read()["settings"])

    def about(self) -> dict[str, Any]:
        """Return how the run was started: command, versions; and for each start its time, commit and machine."""
        return dict(self._read()["about"])

    def note(self, **facts: object) -> None:
        """Add to ``about``."""
        self._write({**self._read(), "about": {**self.about(), **facts}})

    def write_costs(self, costs: ModelCosts) -> None:
        """Keep what the models cost, so that a report needs no model."""
        self._write({**self._read(), "model": costs.to_json()})

    def costs(self) -> ModelCosts | None:
        """Return what the models cost, if that was written."""
        model = self._read().get("model")
        return None if model is None else ModelCosts.from_json(model)

    def write_deal(self, deal: Deal) -> None:
        """Keep what clients were dealt."""
        write_atomic(self._deal, deal.to_csv().encode())

    def deal(self) -> Deal | None:
        """Return what clients were dealt, if that was written."""
        return Deal.from_csv(self._deal.read_text(encoding="utf-8")) if self._deal.exists() else None

    def append(self, record: RoundRecord) -> None:
        """Add a round to the history; it is on the disk when this returns."""
        history.append(self._history, record)

    def history(self) -> list[RoundRecord]:
        """Return the records of all rounds."""
        return history.read(self._history)

    def releases(self) -> dict[str, float]:
        """Return how often something was released with noise, by kind; at least as often as the history knows."""
        known = [{name: value for name, value in record.privacy.items() if name in KINDS} for record in self.history()]
        if self._privacy.exists():
            known.append(self._read_releases())
        return {kind: max(own.get(kind, 0) for own in known) for kind in KINDS} if known else {}

    def write_releases(self, releases: Mapping[str, int]) -> None:
        """Keep how often something was released with noise; ``rewind`` does not forget it."""
        write_atomic(self._privacy, _text(releases))

    def _read_releases(self) -> dict[str, float]:
        try:
            found = json.loads(self._privacy.read_text(encoding="utf-8"))
            return {kind: float(found[kind]) for kind in KINDS}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._privacy} cannot be read, so what the run gave away is not known: {error!r}; restore it"
            ) from error

    def rewind(self, last_round: int) -> None:
        """Forget the rounds after one; a run that goes on from it then writes the history of an uninterrupted one."""
        history.trim(self._history, last_round)
        checkpoints.drop_after(self._checkpoints, last_round)
        # What links lead to is not of this run. Later states do no harm: a client takes the last one before its round.
        folders = [] if self.clients.is_symlink() else [own for own in self.clients.glob("*") if not own.is_symlink()]
        kept = [states_in(client) for client in folders]
        for path in [path for states in kept for number, path in states.items() if number > last_round]:
            remove(path)

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint whole or not at all; the last two are kept."""
        checkpoints.save_checkpoint(self._checkpoints, checkpoint)

    def load_checkpoint(self) -> Checkpoint:
        """Return the last checkpoint; if it, or the record of its round, is damaged, the one before, with a warning."""
        records = self.history()
        return checkpoints.load_checkpoint(self._checkpoints, records[-1].server_round if records else None)

    def save_model(self, level: str, state: State, moments: State, facts: Mapping[str, object]) -> None:
        """Write a level's final model, and the moments of its batch norm layers if there are any."""
        write_atomic(self.models / f"{level}.safetensors", pack(state))
        if moments:
            write_atomic(self.models / f"{level}.moments.safetensors", pack(moments))
        shapes = {name: list(value.shape) for name, value in state.items()}
        write_atomic(self.models / f"{level}.json", _text({"level": level, **facts, "shapes": shapes}))

    def _differences(
        self,
        settings: Mapping[str, object],
        complete: Callable[[Mapping[str, Any]], Mapping[str, object]],
        may_differ: Sequence[str],
    ) -> list[str]:
        # A journey through JSON makes tuples and lists, and paths and their text, equal.
        new, old = (flatten(json.loads(to_json(own))) for own in (settings, complete(self.settings())))
        keys = [key for key in {**old, **new} if key not in may_differ]
        return [f"{key} was {_shown(old, key)} and is {_shown(new, key)}" for key in keys if _differ(old, new, key)]

    def _check_resumable(self, differences: Sequence[str]) -> None:
        if not self.started:
            raise ConfigError(f"{self.path} holds no run to resume: check the folder, or start without resume")
        if differences:
            raise ConfigError(
                f"the run in {self.path} had other settings: {'; '.join(differences)}. "
                f"Resume it with its own settings, or start a new run in another folder"
            )

    def _occupied(self, differences: Sequence[str]) -> str:
        if differences:
            return f"{self.path} holds another run: {'; '.join(differences)}. Choose another folder, or remove this one"
        return f"{self.path} holds a run with these settings already: resume it, or choose another folder"

    def _read(self) -> dict[str, Any]:
        if not self.started:
            raise ConfigError(f"{self.path} is no folder of a run: it has no {self._settings.name}")
        try:
            found = json.loads(self._settings.read_text(encoding="utf-8"))
            return {**found, "settings": dict(found["settings"]), "about": dict(found["about"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self._settings} cannot be read: {error!r}; remove the folder or restore it") from error

    def _write(self, content: Mapping[str, object]) -> None:
        write_atomic(self._settings, _text(content))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Return nested settings under dotted keys."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differ(old: Mapping[str, object], new: Mapping[str, object], key: str) -> bool:
    return (key in old, old.get(key)) != (key in new, new.get(key))


def _shown(values: Mapping[str, object], key: str) -> str:
    return to_json(values[key]) if key in values else "not set"


def _text(content: Mapping[str, object]) -> bytes:
    return f"{to_json(content, indent=2)}\n".encode()


def _versions() -> dict[str, str]:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {"heterofl-flwr": __version__, "python": platform.python_version()} | {
        name: version(name) for name in ("flwr", "torch")
    }
