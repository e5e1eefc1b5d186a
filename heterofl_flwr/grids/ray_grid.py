"""``RayGrid``: Flower's Grid interface over Ray actors, on this machine or on a cluster."""

import atexit
import logging
import math
import os
import signal
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar
from unittest import mock

from flwr.app import Message, UserConfigValue
from flwr.clientapp import ClientApp

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids.apps import reference
from heterofl_flwr.grids.local import QueuedGrid, check_count
from heterofl_flwr.grids.processes import worker_environment
from heterofl_flwr.grids.ray_actors import ActorOptions, start_actors
from heterofl_flwr.grids.worker_pool import Pool

RETRIES = 2
"""How often a message is given to another actor."""

SECONDS_TO_END = 5.0
"""How long each of Ray's processes may take to end."""

LONGEST = 30
"""Characters of the folder in which Ray's may lie: the names of sockets have to be short."""

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
        for name, share in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
                raise ConfigError(f"{name} is {share!r}; expected a number of 0 or more")
        path = reference(client_app)
        super().__init__(num_nodes, cohort, node_config, run_config, cost, seed)
        session = Session()
        try:
            options = ActorOptions(path, num_cpus, num_gpus, session.environment)
            actors, takes_groups = start_actors(options, min(at_once or num_nodes, num_nodes))
            self._open(Pool(actors, takes_groups, self._contexts, retries=RETRIES, on_close=session.close))
        except BaseException:
            session.close()
            raise
        atexit.register(self._finalizer)  # before Ray ends itself; unlike a method, it does not hold the grid

    def close(self) -> None:
        """End the actors, busy or not, and Ray if this grid has started it. More calls do nothing."""
        super().close()
        atexit.unregister(self._finalizer)


class Session:
    """A connection to Ray, which is started if this process has none and no cluster is named."""

    _held: ClassVar[int] = 0
    _sweeper: ClassVar["subprocess.Popen[bytes] | None"] = None
    _is_ours: ClassVar[bool] = False
    _environment: ClassVar[Mapping[str, str]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError(
                "RayGrid needs Ray, which cannot be imported. Install flwr[simulation], or use LocalGrid(processes=...)"
            ) from error
        own = worker_environment()
        with Session._lock:
            if Session._held == 0:
                Session._is_ours, Session._environment = not ray.is_initialized(), {}
                if Session._is_ours and (address := os.environ.get("RAY_ADDRESS")):
                    try:
                        _init(ray)
                    except ConnectionError as error:
                        raise ConfigError(f"no Ray answers at RAY_ADDRESS={address!r}: {error}") from error
                elif Session._is_ours:
                    Session._environment = own
                    Session._sweeper = _start(ray, {**_SETTINGS, **own})
            Session._held += 1
        self.environment = {} if own == Session._environment else own  # what Ray has already, actors need not wait for
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
            shut_down(ray)
            if Session._sweeper is not None:
                Session._sweeper.communicate()
                Session._sweeper = None


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
        shut_down(ray)
        sweeper.communicate()
        raise
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return sweeper


def shut_down(ray: Any) -> None:
    """Leave Ray, and wait for the processes that this one has started for it: Ray ends them, but does not wait."""
    node: Any = ray._private.worker._global_node
    started: list[Any] = [own.process for kind in node.all_processes.values() for own in kind] if node else []
    ray.shutdown()
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SECONDS_TO_END)


def _init(ray: Any, **options: Any) -> None:
    """Let Ray say nothing, and leave this process's signals alone."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings(), mock.patch("ray._private.worker.listen_error_messages"):  # it prints each death
        warnings.simplefilter("ignore", FutureWarning)  # of what later versions do when num_gpus is 0
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if is_main:
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own
