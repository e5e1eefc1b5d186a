"""Ray actors as workers, from both of their ends."""

import logging
import math
import os
import pickle
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from flwr.app import Context

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import Outcome
from heterofl_flwr.grids.payloads import Letter, Place, join, large_arrays, split
from heterofl_flwr.grids.pool import Worker, WorkerDeathError
from heterofl_flwr.grids.runner import Group
from heterofl_flwr.grids.worker import answer, letter_of, try_load, unsendable

logger = logging.getLogger(__name__)

PATIENCE = 60.0  # seconds until somebody is told that the cluster has no room for an actor

Packed = tuple[bytes, list[Place], list[pickle.PickleBuffer]]
"""A letter without its large arrays, and these, which Ray does not copy into a pickle."""


class Slice:
    """The large arrays of messages, put into Ray's object store when first needed; it frees them with this object."""

    def __init__(self, arrays: tuple[bytes, ...]) -> None:
        self.arrays = arrays  # they are known by their identity, which nothing else can take while they are held here
        self._reference: Any = None
        self._lock = threading.Lock()

    def begins(self, arrays: Sequence[bytes]) -> bool:
        """Return whether these arrays begin with its own: a message may have changed since it was pushed."""
        return list(map(id, arrays[: len(self.arrays)])) == list(map(id, self.arrays))

    def reference(self) -> Any:
        """Return where they are in the object store."""
        import ray

        with self._lock:
            if self._reference is None:
                self._reference = ray.put([pickle.PickleBuffer(array) for array in self.arrays])
            return self._reference


@dataclass(frozen=True, slots=True)
class Kind:
    """What is the same for all actors of a grid.

    Attributes
    ----------
    client_app
        The ClientApp, as ``"module:attribute"``.
    num_cpus, num_gpus
        What Ray reserves for each.
    environment
        What is added to the environment of each.
    slices
        What is in the object store while messages that need it are under way.
    """

    client_app: str
    num_cpus: float
    num_gpus: float
    environment: Mapping[str, str]
    slices: "WeakValueDictionary[tuple[int, ...], Slice]" = field(default_factory=WeakValueDictionary)

    def start(self) -> Any:
        """Start an actor; it runs when the cluster has room for it."""
        import ray

        return (
            ray.remote(Clients)
            .options(
                num_cpus=self.num_cpus,
                num_gpus=self.num_gpus,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": dict(self.environment)} if self.environment else None,
            )
            .remote(self.client_app, os.getcwd())
        )


class Actor(Worker):
    """The end of this process: an actor that answers one group at a time, and is replaced when it has died."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._is_gone = False
        self._start()

    def is_ready(self, seconds: float) -> bool:
        """Wait until the actor has loaded the ClientApp, or so many seconds."""
        import ray

        return bool(ray.wait([self._loading], timeout=seconds)[0])

    def takes_groups(self) -> bool:
        """Return whether the ClientApp answers messages together, when it is loaded; raise ConfigError if it is not."""
        import ray

        try:
            trouble, takes_groups, self._stderr = ray.get(self._loading)
        except ray.exceptions.RayError as error:
            trouble, takes_groups = f"it {self._ending(error)} while it loaded {self._kind.client_app!r}", False
        if trouble:
            self._is_gone = True
            raise ConfigError(f"in an actor: {trouble}")
        self._is_loaded = True
        return bool(takes_groups)

    def revive(self) -> None:
        """Replace an actor that is gone; wait for room, which another machine may have to bring."""
        if self._is_gone:
            self.stop()
            self._is_gone = False
            self._start()
        if not self._is_loaded:
            self._await()
            self.takes_groups()

    def check(self) -> None:
        """Ask the actor for a sign of life, and replace it if there is none."""
        import ray

        try:
            ray.get(self._actor.ready.remote())
        except ray.exceptions.RayError:
            self._is_gone = True
        self.revive()

    def run(self, group: Group, contexts: Sequence[Context]) -> list[Outcome]:
        """Let the actor answer messages together."""
        import ray

        packed, references = [], []
        for message, context, own in zip(group.messages, contexts, group.shared, strict=True):
            thin, places, arrays = split((message, context, ""))
            there = len(own.arrays) if own and own.begins(arrays) else 0
            references.append(own.reference() if there else None)
            packed.append((thin, places, list(map(pickle.PickleBuffer, arrays[there:]))))
        try:
            replies: list[Packed] = ray.get(self._actor.answer.remote(packed, *references))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._is_gone = True
            raise WorkerDeathError(self._ending(error)) from error
        return [
            Outcome(*join(pickle.loads(thin), places, arrays))  # noqa: S301  # our own actor's, and Ray unpickles too
            for thin, places, arrays in replies
        ]

    def share(self, groups: Sequence[Group]) -> None:
        """Let each slice be in the object store but once, whatever number of pushes its messages come with."""
        for group in groups:
            group.shared = [self._slice(large_arrays(message)) for message in group.messages]

    def kill(self) -> None:
        """End the actor at once."""
        self._is_gone = True
        self.stop()

    def stop(self) -> None:
        """End the actor, idle or not: it has nothing to lose."""
        import ray

        with suppress(Exception):  # it is gone already, or Ray is
            ray.kill(self._actor)

    def _start(self) -> None:
        self._is_loaded, self._stderr = False, ""
        self._actor = self._kind.start()
        self._loading: Any = self._actor.ready.remote()

    def _await(self) -> None:
        """Wait until the actor has loaded the ClientApp, or another thread ends it."""
        told = time.monotonic() + PATIENCE
        while not self._is_gone and not self.is_ready(0.2):
            if time.monotonic() > told:
                logger.warning("still no room for an actor: %s", room_needed(self._kind))
                told = math.inf

    def _ending(self, error: Exception) -> str:
        """Say how the actor ended, and what it said last, if its log is on this machine."""
        last = _last_lines(Path(self._stderr))
        return f"died: {_brief(error)}" + (f" (it said last: {last})" if last else "")

    def _slice(self, arrays: tuple[bytes, ...]) -> Slice | None:
        if not arrays:
            return None
        key = tuple(map(id, arrays))
        own = self._kind.slices.get(key)
        if own is None:
            own = self._kind.slices[key] = Slice(arrays)
        return own


class Clients:
    """The other end: what Ray runs as an actor."""

    def __init__(self, client_app: str, folder: str) -> None:
        with suppress(OSError):  # another machine may not have it
            os.chdir(folder)
        self._app, self._trouble = try_load(client_app)

    def ready(self) -> tuple[str, bool, str]:
        """Return why the ClientApp cannot be loaded, whether it answers messages together, and where stderr goes."""
        return self._trouble, hasattr(self._app, "train_cohort"), os.path.realpath("/dev/stderr")

    def answer(
        self, packed: Sequence[tuple[Letter, list[Place], list[Any]]], *slices: Sequence[Any] | None
    ) -> list[Packed]:
        """Answer messages that came together."""
        if self._app is None:
            raise RuntimeError(self._trouble)
        letters = [
            join(thin, places, [*(shared or ()), *own])
            for (thin, places, own), shared in zip(packed, slices, strict=True)
        ]
        outcomes = answer(self._app, letters)
        return [_pack(letter, outcome) for letter, outcome in zip(letters, outcomes, strict=True)]


def _pack(letter: Letter, outcome: Outcome) -> Packed:
    try:
        thin, places, arrays = split(letter_of(outcome))
        return pickle.dumps(thin), places, list(map(pickle.PickleBuffer, arrays))
    except Exception as error:
        return _pack(letter, unsendable(letter[0], error))


def room_needed(kind: Kind) -> str:
    """Say what an actor needs, and what the cluster has."""
    import ray

    has = {name: ray.cluster_resources().get(name, 0) for name in ("CPU", "GPU")}
    free = {name: ray.available_resources().get(name, 0) for name in ("CPU", "GPU")}
    return (
        f"it needs num_cpus={kind.num_cpus:g} and num_gpus={kind.num_gpus:g}; the cluster has {has['CPU']:g} CPUs and "
        f"{has['GPU']:g} GPUs, of which {free['CPU']:g} and {free['GPU']:g} are free"
    )


def _brief(error: Exception) -> str:
    """Return how an actor ended, in Ray's words, without its guesses why."""
    text = " ".join(line.strip() for line in str(error).splitlines() if not line.startswith("\t"))
    return text.rpartition("Worker exit detail:")[2].partition("Some common causes include:")[0].strip().rstrip(".")


def _last_lines(log: Path) -> str:
    """Return what an actor wrote last; a line of Ray's own begins with a colon."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return " | ".join([line.strip() for line in lines if line.strip() and not line.startswith(":")][-5:])
