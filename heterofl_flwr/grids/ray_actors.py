"""Ray actors as workers, from both of their ends."""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from pickle import PickleBuffer
from typing import Any, cast

import ray
from flwr.app import Context

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import Envelope
from heterofl_flwr.grids.payloads import Slice, pack, unpack
from heterofl_flwr.grids.processes import answer_each, try_load
from heterofl_flwr.grids.runner import Group
from heterofl_flwr.grids.worker_pool import Worker, WorkerDeathError, ended_on_error

logger = logging.getLogger(__name__)

PATIENCE = 60.0
"""Seconds until a warning says that an actor has not started, and what the cluster has."""

NEIGHBOURS = 5.0
"""Seconds in which actors that were started together should all be there."""


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """What all actors of a grid run, what Ray reserves for each, and what is added to its environment."""

    client_app: str
    num_cpus: float
    num_gpus: float
    environment: Mapping[str, str]

    def room(self) -> int:
        """Return how many actors the cluster's machines have room for, if nobody else uses them."""
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(self.fit(own.get("CPU", 0.0), own.get("GPU", 0.0)) for own in machines)

    def fit(self, cpus: float, gpus: float) -> int:
        """Return how many actors fit on a machine; a share of a GPU is of one GPU."""
        most: int = math.floor(cpus / (self.num_cpus or 1) + 1e-9)
        if self.num_gpus >= 1:
            return min(most, math.floor(gpus / self.num_gpus))
        if self.num_gpus:
            return min(most, math.floor(gpus) * math.floor(1 / self.num_gpus + 1e-9))
        return most

    def lack(self) -> str:
        """Say what an actor needs, and what the cluster has."""
        has, free = ray.cluster_resources(), ray.available_resources()
        return (
            f"it needs num_cpus={self.num_cpus:g} and num_gpus={self.num_gpus:g}; the cluster has "
            f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, of which {free.get('CPU', 0):g} and "
            f"{free.get('GPU', 0):g} are free"
        )


def start_actors(options: ActorOptions, most: int) -> tuple[Sequence["Actor"], bool]:
    """Start as many actors as there is room for; wait for one, and return whether the ClientApp answers groups.

    Those for which there is no room yet, because others use the cluster, work from when there is. Nothing tells an
    actor without room from one that imports torch on a slow machine, so no time limit ends the wait: a warning does.
    """
    number = min(most, options.room())
    if number == 0:
        raise ConfigError(f"no machine has room for an actor: {options.lack()}")
    actors = [Actor(options) for _ in range(number)]
    with ended_on_error(actors):
        takes_groups = [actors[0].load()]
        until = time.monotonic() + NEIGHBOURS
        takes_groups += [actor.load() for actor in actors[1:] if actor.is_ready(max(0.0, until - time.monotonic()))]
    return actors, all(takes_groups)


class Actor(Worker):
    """The end of this process: an actor that answers one group at a time."""

    def __init__(self, options: ActorOptions) -> None:
        self._options = options
        super().__init__()

    def start(self) -> None:
        """Start an actor; it runs when the cluster has room for it."""
        self._stderr = ""
        self._takes_groups: bool | None = None  # until it has loaded the ClientApp
        own = self._options
        self._actor = cast(
            Any,
            ray.remote(Clients)
            .options(
                num_cpus=own.num_cpus,
                num_gpus=own.num_gpus,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": dict(own.environment)} if own.environment else None,
            )
            .remote(own.client_app, os.getcwd()),
        )
        self._loading: Any = self._actor.ready.remote()

    def is_ready(self, seconds: float) -> bool:
        """Wait at most so long until the actor has loaded the ClientApp; return whether it has."""
        return bool(ray.wait([self._loading], timeout=seconds)[0])

    def load(self) -> bool:
        """Wait until the actor has loaded the ClientApp, which needs room, or until another thread ends it."""
        if self._takes_groups is not None:
            return self._takes_groups
        warn_at = time.monotonic() + PATIENCE
        while not self._is_ended and not self.is_ready(0.2):
            if time.monotonic() > warn_at:
                logger.warning("an actor has not started in %g s; waiting: %s", PATIENCE, self._options.lack())
                warn_at = math.inf
        try:
            trouble, takes_groups, self._stderr = ray.get(self._loading)
        except ray.exceptions.RayError as error:
            trouble = f"it {self._describe(error)} while it loaded {self._options.client_app!r}"
        if trouble:
            self._is_ended = True
            raise ConfigError(f"in an actor: {trouble}")
        self._takes_groups = bool(takes_groups)
        return self._takes_groups

    def has_died(self, ask: bool) -> bool:
        """Return whether the actor gives no sign of life, if it is asked for one."""
        try:
            if ask:
                ray.get(self._actor.ready.remote())
        except ray.exceptions.RayError:
            return True
        return False

    def run(self, group: Group, contexts: Sequence[Context]) -> list[Envelope]:
        """Let the actor answer messages together."""
        packed, references = [], []
        for message, context, own in zip(group.messages, contexts, group.slices, strict=True):
            pickled, arrays = pack(Envelope(message, context))
            common = own.length_in(arrays) if own else 0
            references.append(_store(own) if own and common else None)
            packed.append((pickled, _buffers(arrays[common:])))
        try:
            replies = ray.get(self._actor.answer.remote(packed, *references))
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._is_ended = True
            raise WorkerDeathError(self._describe(error)) from error
        return [unpack(*reply) for reply in replies]

    def kill(self) -> None:
        """End the actor at once."""
        self._is_ended = True
        self.stop()

    def stop(self) -> None:
        """End the actor, idle or not: it has nothing to lose."""
        with suppress(Exception):  # it is gone already, or Ray is
            ray.kill(self._actor)

    def _describe(self, error: Exception) -> str:
        """Say how the actor ended, in Ray's words without its guesses why, and its last lines if they are here."""
        text = " ".join(line.strip() for line in str(error).splitlines() if not line.startswith("\t"))
        text = text.rpartition("Worker exit detail:")[2].partition("Some common causes include:")[0]
        log = Path(self._stderr)
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        last = [line.strip() for line in lines if line.strip() and not line.startswith(":")]  # Ray's begin with a colon
        said = f" (it said last: {' | '.join(last[-5:])})" if last else ""
        return f"died: {text.strip().rstrip('.')}{said}"


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
        self, packed: Sequence[tuple[bytes, Sequence[Any]]], *slices: Sequence[Any] | None
    ) -> list[tuple[bytes, list[PickleBuffer]]]:
        """Answer messages that came together."""
        if self._app is None:
            raise RuntimeError(self._trouble)
        pairs = zip(packed, slices, strict=True)
        envelopes = [unpack(pickled, [*(common or ()), *own]) for (pickled, own), common in pairs]
        replies: list[tuple[bytes, list[PickleBuffer]]] = []

        def send(envelope: Envelope) -> None:
            pickled, arrays = pack(envelope)
            replies.append((pickled, _buffers(arrays)))

        answer_each(self._app, envelopes, send)
        return replies


def _store(own: Slice) -> object:
    """Return the reference to a slice's arrays, which Ray stores once."""
    with own.lock:
        if own.reference is None:
            own.reference = ray.put(_buffers(own.arrays))
        return own.reference


def _buffers(arrays: Sequence[bytes]) -> list[PickleBuffer]:
    """Return arrays so that Ray does not copy them into a pickle."""
    return list(map(PickleBuffer, arrays))
