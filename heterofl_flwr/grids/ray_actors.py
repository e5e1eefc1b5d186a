"""Ray actors that run clients, and pickling of their messages."""

import io
import os
import pickle
import socket
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pickle import PickleBuffer
from types import MappingProxyType
from typing import Any, cast

import ray
import torch
from flwr.app import ArrayRecord, Context
from flwr.clientapp import ClientApp

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.grids.call_app import Envelope, answer, failure, load
from heterofl_flwr.transport.compat import ErrorCode, ensure_identity

Actor = Any
"""Ray's handle of an actor."""


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """Options of a grid's actors: ClientApp, resources and environment variables."""

    client_app: ClientApp | str
    num_cpus: float
    num_gpus: float
    environment: Mapping[str, str]

    def start(self) -> Actor:
        """Start an actor of class ``Clients``."""
        options = {
            "num_cpus": self.num_cpus,
            "num_gpus": self.num_gpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": dict(self.environment)} if self.environment else None,
        }
        return cast(Any, ray.remote(Clients)).options(**options).remote(self.client_app, os.getcwd())

    def room(self) -> int:
        """Return how many actors fit into all machines together. An actor cannot use parts of several GPUs."""
        return sum(self._room_on(node["Resources"]) for node in ray.nodes() if node["Alive"])

    def _room_on(self, has: Mapping[str, float]) -> int:
        room = int(has.get("CPU", 0) / (self.num_cpus or 1) + 1e-9)
        if self.num_gpus:
            gpus = has.get("GPU", 0)
            each = int(1 / self.num_gpus + 1e-9)  # actors on one GPU
            room = min(room, int(gpus) * each if each else int(gpus / self.num_gpus))
        return room

    def lack(self) -> str:
        """Return a text on the resources that an actor needs, and on the resources of the cluster."""
        has, free = ray.cluster_resources(), ray.available_resources()
        return (
            f"it needs num_cpus={self.num_cpus:g} and num_gpus={self.num_gpus:g}; the cluster has "
            f"{has.get('CPU', 0):g} CPUs and {has.get('GPU', 0):g} GPUs, of which {free.get('CPU', 0):g} and "
            f"{free.get('GPU', 0):g} are free"
        )


class Clients:
    """Class of the Ray actors. An actor runs clients, one call at a time."""

    def __init__(self, client_app: ClientApp | str, folder: str) -> None:
        with suppress(OSError):  # another machine may not have the folder
            os.chdir(folder)
        ensure_identity()
        self._app, self._trouble = ClientApp(), ""
        try:
            self._app = load(client_app)
        except BaseException as error:  # such as SystemExit while the module is imported
            self._trouble = str(error) if isinstance(error, ConfigError) else traceback.format_exc()
        if ray.get_gpu_ids() and not torch.cuda.is_available():  # a client would train on the CPU without a warning
            self._trouble = self._trouble or (
                f"Ray counts a GPU on {socket.gethostname()}, and torch {torch.__version__} finds none there: ask for "
                f"num_gpus=0, or start Ray with as many GPUs as the machine has"
            )

    def ready(self) -> tuple[str, bool, str]:
        """Return three values: error text, whether the app has ``train_cohort``, and the path of the stderr file.

        The error text is ``""`` if the actor can run clients.
        """
        trouble = f"on {socket.gethostname()}: {self._trouble}" if self._trouble else ""
        return trouble, hasattr(self._app, "train_cohort"), os.path.realpath("/dev/stderr")

    def answer(self, pickled: Sequence[bytes], *records: ArrayRecord) -> list[PickleBuffer]:
        """Run the clients of pickled envelopes. Return a pickled reply or error reply for each envelope.

        ``records[n]`` is the array record that ``pack`` has replaced by the number ``n`` in the envelopes.
        """
        envelopes = [unpack(envelope, records) for envelope in pickled]
        messages = [envelope.message for envelope in envelopes]
        contexts = [cast(Context, envelope.context) for envelope in envelopes]
        answers = answer(self._app, messages, contexts)
        replies = []
        for message, envelope in zip(messages, answers, strict=True):
            if envelope.trouble:
                envelope = envelope._replace(trouble=f"on {socket.gethostname()}: {envelope.trouble}")
            try:
                replies.append(pack(envelope))
            except Exception as error:
                code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
                replies.append(pack(failure(message, code, error, traceback.format_exc())))
        return replies


def pack(envelope: Envelope, stored: Mapping[int, int] = MappingProxyType({})) -> PickleBuffer:
    """Pickle a message and its context, with a number instead of each record that is stored in Ray.

    ``stored`` maps the ``id()`` of such a record to its number.
    """
    pickled = io.BytesIO()
    pickler = pickle.Pickler(pickled, protocol=5)
    pickler.persistent_id = lambda value: stored.get(id(value))  # type: ignore[method-assign]
    pickler.dump(envelope)
    return PickleBuffer(pickled.getbuffer())  # Ray copies a PickleBuffer once, into shared memory


def unpack(pickled: bytes, records: Sequence[ArrayRecord] = ()) -> Envelope:
    """Unpickle an envelope. ``records[n]`` replaces the number ``n``."""
    unpickler = pickle.Unpickler(io.BytesIO(pickled))  # noqa: S301  # pickled by this grid or by its actor
    unpickler.persistent_load = lambda number: records[number]  # type: ignore[method-assign]
    return cast(Envelope, unpickler.load())
