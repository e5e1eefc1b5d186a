"""Ray actors that run clients, from both of their ends: how they are started, and what travels to them and back."""

import io
import math
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pickle import PickleBuffer
from types import MappingProxyType
from typing import Any, cast

import ray
import torch
from flwr.app import ArrayRecord, Context
from flwr.clientapp import ClientApp

from heterofl_flwr.compat import ErrorCode, set_identity
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import Envelope, answer, failure, load
from heterofl_flwr.grids.ray_runner import ActorDeathError, Ready, Report, StoredRecord

Read = Callable[[Any], Ready | list[Envelope]]
"""From what Ray returns to what an actor says."""


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


class Actor:
    """The end of this process: an actor that does one thing at a time, and reports what came of it."""

    def __init__(self, options: ActorOptions, report: Report) -> None:
        self._report = report
        self._log = Path()  # where the actor's stderr goes
        self._actor: Any = (
            cast(Any, ray.remote(Clients))
            .options(
                num_cpus=options.num_cpus,
                num_gpus=options.num_gpus,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": dict(options.environment)} if options.environment else None,
            )
            .remote(options.client_app, os.getcwd())
        )
        self.ask()

    def ask(self) -> None:
        """Let it report whether it has loaded the ClientApp; any report is a sign of life."""
        self._call(self._actor.ready.remote(), self._read_ready)

    def answer(self, envelopes: Sequence[Envelope], stored: Sequence[StoredRecord]) -> None:
        """Let it report its answers to messages; what Ray has stored, it fetches."""
        for own in stored:
            own.reference = own.reference or ray.put(own.record)
        numbers = {id(own.record): number for number, own in enumerate(stored)}
        pickled = [pack(envelope, numbers) for envelope in envelopes]
        references = [own.reference for own in stored]
        self._call(self._actor.answer.remote(pickled, *references), lambda replies: list(map(pickle.loads, replies)))

    def kill(self) -> None:
        """End it at once; what it was doing is reported as its death."""
        with suppress(Exception):  # it is gone already, or Ray is
            ray.kill(self._actor)

    def _call(self, reference: Any, read: Read) -> None:
        """Report what comes of a call; it is read by whom it is reported to, as Ray's own thread must not be kept."""
        # The future must not be held by its callback: with its replies it would stay until the garbage is collected.
        reference.future().add_done_callback(lambda done: self._report(self, partial(self._outcome, done, read)))

    def _outcome(self, done: "Future[Any]", read: Read) -> Ready | list[Envelope]:
        """Return what the actor says; raise ``ActorDeathError`` if it died."""
        try:
            return read(done.result())
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            raise ActorDeathError(self._describe(error)) from error

    def _read_ready(self, found: tuple[str, bool, str]) -> Ready:
        trouble, takes_groups, log = found
        self._log = Path(log)
        return Ready(trouble, takes_groups)

    def _describe(self, error: Exception) -> str:
        """Say how the actor ended, in Ray's words without its guesses why, and its last lines if they are here."""
        text = " ".join(line.strip() for line in str(error).splitlines() if not line.startswith("\t"))
        text = text.rpartition("Worker exit detail:")[2].partition("Some common causes include:")[0]
        lines = self._log.read_text(errors="replace").splitlines() if self._log.is_file() else []
        last = [line.strip() for line in lines if line.strip() and not line.startswith(":")]  # Ray's begin with a colon
        said = f" (it said last: {' | '.join(last[-5:])})" if last else ""
        return f"died: {text.strip().rstrip('.')}{said}"


class Clients:
    """The other end: what Ray runs as an actor."""

    def __init__(self, client_app: str, folder: str) -> None:
        with suppress(OSError):  # another machine may not have it
            os.chdir(folder)
        self._app, self._trouble = ClientApp(), ""
        try:
            self._app = load(client_app)
        except BaseException as error:  # such as a SystemExit of its module
            self._trouble = str(error) if isinstance(error, ConfigError) else traceback.format_exc()
        if ray.get_gpu_ids() and not torch.cuda.is_available():  # a client would train on the CPU without a word
            self._trouble = self._trouble or (
                f"Ray counts a GPU on {socket.gethostname()}, and torch {torch.__version__} finds none there: ask for "
                f"num_gpus=0, or start Ray with as many GPUs as the machine has"
            )

    def ready(self) -> tuple[str, bool, str]:
        """Return why the ClientApp cannot be loaded, whether it answers messages together, and where stderr goes."""
        return self._trouble, hasattr(self._app, "train_cohort"), os.path.realpath("/dev/stderr")

    def answer(self, pickled: Sequence[bytes], *records: ArrayRecord) -> list[PickleBuffer]:
        """Answer messages that came together, each as its node; an answer that does not pickle fails alone."""
        envelopes = [unpack(own, records) for own in pickled]
        messages, contexts = [own.message for own in envelopes], [cast(Context, own.context) for own in envelopes]
        answers = answer(self._app, messages, contexts, lambda context: set_identity(context.run_id, context.node_id))
        replies = []
        for message, own in zip(messages, answers, strict=True):
            try:
                replies.append(pack(own))
            except Exception as error:
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                replies.append(pack(failure(message, code, error, traceback.format_exc())))
        return replies


def pack(envelope: Envelope, stored: Mapping[int, int] = MappingProxyType({})) -> PickleBuffer:
    """Pickle an envelope, without records that Ray has stored: in their place is their number, by their identity."""
    pickled = io.BytesIO()
    pickler = pickle.Pickler(pickled, protocol=5)
    pickler.persistent_id = lambda value: stored.get(id(value))  # type: ignore[method-assign]
    pickler.dump(envelope)
    return PickleBuffer(pickled.getbuffer())  # which Ray copies once, to where the other end reads it


def unpack(pickled: bytes, records: Sequence[ArrayRecord]) -> Envelope:
    """Return an envelope with the records that Ray has stored."""
    unpickler = pickle.Unpickler(io.BytesIO(pickled))  # noqa: S301  # our own server pickled it
    unpickler.persistent_load = lambda number: records[number]  # type: ignore[method-assign]
    return cast(Envelope, unpickler.load())
