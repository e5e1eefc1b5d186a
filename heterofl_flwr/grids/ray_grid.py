"""``RayGrid``: Flower's Grid interface over Ray actors, on this machine or on a cluster."""

import atexit
import logging
import math
import os
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar
from unittest import mock

from flwr.app import Message, UserConfigValue
from flwr.clientapp import ClientApp

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import reference
from heterofl_flwr.grids.pool import Pool
from heterofl_flwr.grids.queued import Contexts, QueuedGrid, check_count
from heterofl_flwr.grids.ray_actors import PATIENCE, Actor, Kind, room_needed
from heterofl_flwr.grids.worker import worker_environment

RETRIES = 2
"""How often a message is given to another actor."""

LONGEST = 30
"""Characters of the folder in which Ray's may lie: the names of sockets have to be short."""

NEIGHBOURS = 5.0
"""Seconds in which actors that were started together should all be there."""

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",  # what a client has started ends with its actor
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # until Ray's processes end by themselves, if this one is killed
}
# Reads until the process that holds the pipe closes it or dies, then removes Ray's folder, into which Ray's processes
# may write until they have ended.
_SWEEP = 'read line; while [ -e "$0" ]; do rm -rf "$0"; sleep 0.2; done'


class RayGrid(QueuedGrid):
    """Run any ClientApp in Ray actors, behind the interface that every Flower strategy uses.

    It does what ``LocalGrid`` does with worker processes, and its clients train the same bits. Beyond that, actors get
    fractions of GPUs, may be on other machines, and are replaced: what an actor had that died (killed, out of memory,
    gone with its machine) is given to another, at most twice, before the reply is an error. ``deaths`` names them.

    Ray is joined where this process uses it already, or where the environment variable ``RAY_ADDRESS`` names a cluster,
    whose machines need the same packages and paths. Else it is started here, and ended by ``close``.

    Use it as a context manager, or call ``close``.

    Parameters
    ----------
    client_app : ClientApp or str
        The ClientApp, or where to import it: ``"module:attribute"``. It has to be importable.
    num_nodes : int
        How many nodes there are. Node ``i`` has ``partition-id`` i; its id depends on ``seed`` and i alone.
    num_cpus : float
        Processor cores that Ray reserves for each actor. Whatever it is, a client uses one thread.
    num_gpus : float
        Share of a GPU for each actor, or a number of whole ones; 0 hides them from it.
    at_once : int, optional
        The most actors; None for as many as the machines have room for.
    cohort, node_config, run_config, cost, seed
        As for ``LocalGrid``.

    Examples
    --------
    >>> with RayGrid("my_app.client:app", 100, num_gpus=0.1) as grid:
    ...     result = FedAvg().start(grid, initial_arrays, num_rounds=3)
    """

    def __init__(
        self,
        client_app: ClientApp | str,
        num_nodes: int,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0.0,
        at_once: int | None = None,
        cohort: int | Callable[[Message], int] = 1,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
        run_config: Mapping[str, UserConfigValue] | None = None,
        cost: Callable[[Message], float] | None = None,
        seed: int = 0,
    ) -> None:
        if at_once is not None:
            check_count("at_once", at_once, 1)
        _check_share("num_cpus", num_cpus)
        _check_share("num_gpus", num_gpus)
        path = reference(client_app)

        def start(contexts: Contexts) -> Pool:
            session = Session()
            try:
                return ActorPool(
                    session,
                    Kind(path, num_cpus, num_gpus, session.environment),
                    min(at_once or num_nodes, num_nodes),
                    contexts,
                )
            except BaseException:
                session.close()
                raise

        super().__init__(
            start, num_nodes, cohort=cohort, node_config=node_config, run_config=run_config, cost=cost, seed=seed
        )
        atexit.register(self._finalizer)  # before Ray ends itself; unlike a method, it does not hold the grid

    def close(self) -> None:
        """End the actors, busy or not, and Ray if this grid has started it. More calls do nothing."""
        super().close()
        atexit.unregister(self._finalizer)


class ActorPool(Pool):
    """A pool of actors, with the connection to Ray that they need."""

    def __init__(self, session: "Session", kind: Kind, most: int, contexts: Contexts) -> None:
        self._session = session
        super().__init__(*start_actors(kind, most), contexts, RETRIES)

    def close(self) -> None:
        """End the actors, the threads and the connection."""
        super().close()
        self._session.close()


class Session:
    """A connection to Ray, which is started if this process has none and no cluster is named."""

    _held: ClassVar[int] = 0
    _sweeper: ClassVar["subprocess.Popen[bytes] | None"] = None
    _is_ours: ClassVar[bool] = False
    _environment: ClassVar[Mapping[str, str]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        ray = _import_ray()
        with Session._lock:
            if Session._held == 0:
                Session._is_ours = not ray.is_initialized()
                Session._environment = {}
                if Session._is_ours and os.environ.get("RAY_ADDRESS"):
                    _join(ray)
                elif Session._is_ours:
                    Session._environment = worker_environment()
                    Session._sweeper = _start(ray, {**_SETTINGS, **Session._environment})
            Session._held += 1
        own = worker_environment()  # an actor that needs one which Ray has not starts later
        self.environment = {} if own == Session._environment else own
        self._is_open = True

    def close(self) -> None:
        """Let go; the last one ends what was started."""
        import ray

        with Session._lock:
            if not self._is_open:
                return
            self._is_open = False
            Session._held -= 1
            if Session._held or not Session._is_ours:
                return
            ray.shutdown()
            if Session._sweeper is not None:
                Session._sweeper.communicate()
                Session._sweeper = None


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ConfigError(
            "RayGrid needs Ray, which cannot be imported. Install flwr[simulation], or use LocalGrid(processes=...)"
        ) from error
    return ray


def _join(ray: Any) -> None:
    """Join the cluster that is named."""
    try:
        _init(ray)
    except ConnectionError as error:
        raise ConfigError(f"no Ray answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']!r}: {error}") from error


def _start(ray: Any, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Start Ray here, and the process that removes its folder when this one has ended in any way."""
    own = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="ray-", dir=own if len(own) < LONGEST else "/tmp")  # noqa: S108  # on purpose
    sweeper = subprocess.Popen(["/bin/sh", "-c", _SWEEP, folder], stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603  # our own text
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # Ray's processes keep it
    try:
        _init(ray, include_dashboard=False, _temp_dir=folder)
    except BaseException:
        ray.shutdown()
        sweeper.communicate()
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return sweeper


def _init(ray: Any, **options: Any) -> None:
    """Let Ray say nothing, and leave this process's signals alone."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings(), mock.patch("ray._private.worker.listen_error_messages"):  # it prints each death
        warnings.simplefilter("ignore", FutureWarning)  # of what later versions do when num_gpus is 0
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if is_main:
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own


def start_actors(kind: Kind, most: int) -> tuple[Sequence[Actor], bool]:
    """Start as many actors as there is room for; wait for them, and return whether the ClientApp answers groups.

    Those for which there is no room yet, because others use the cluster, work from when there is.
    """
    number = min(most, room(kind))
    if number == 0:
        raise ConfigError(f"no machine has room for an actor: {room_needed(kind)}")
    actors = [Actor(kind) for _ in range(number)]
    try:
        if not actors[0].is_ready(PATIENCE):
            raise ConfigError(f"there was no room for an actor in {PATIENCE:g} s: {room_needed(kind)}")
        until = time.monotonic() + NEIGHBOURS
        takes_groups = [actor.takes_groups() for actor in actors if actor.is_ready(max(0.0, until - time.monotonic()))]
    except BaseException:
        for actor in actors:
            actor.kill()
        raise
    return actors, all(takes_groups)


def room(kind: Kind) -> int:
    """Return how many actors the cluster's machines have room for, if nobody else uses them."""
    import ray

    return sum(
        _fits(node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0), kind)
        for node in ray.nodes()
        if node["Alive"]
    )


def _fits(cpus: float, gpus: float, kind: Kind) -> int:
    """Return how many actors fit on a machine; a share of a GPU is of one GPU."""
    most: int = math.floor(cpus / (kind.num_cpus or 1) + 1e-9)
    if kind.num_gpus >= 1:
        return min(most, math.floor(gpus / kind.num_gpus))
    if kind.num_gpus:
        return min(most, math.floor(gpus) * math.floor(1 / kind.num_gpus + 1e-9))
    return most


def _check_share(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; expected a number of 0 or more")
