"""``RayGrid``: Flower's Grid interface over Ray actors, on this machine or on a cluster."""

import atexit
import logging
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, Unpack
from unittest import mock

from flwr.clientapp import ClientApp

from heterofl_flwr.errors import ConfigError, check_count, extra
from heterofl_flwr.grids.apps import reference
from heterofl_flwr.grids.local import GridKeywords, QueuedGrid
from heterofl_flwr.grids.processes import worker_environment
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
_SWEEP = """
import os, shutil, sys, time
sys.stdin.read()
while os.path.exists(sys.argv[1]):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    time.sleep(0.2)
"""


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
    **options
        ``cohort``, ``node_config``, ``run_config``, ``cost`` and ``seed``, as for ``LocalGrid``.

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
        **options: Unpack[GridKeywords],
    ) -> None:
        if at_once is not None:
            check_count("at_once", at_once, 1)
        for name, share in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < math.inf:
                raise ConfigError(f"{name} is {share!r}; expected a number of 0 or more")
        if num_gpus > 1 and num_gpus % 1:
            raise ConfigError(f"num_gpus is {num_gpus!r}; expected a share of one GPU, or a number of whole ones")
        path = reference(client_app)
        super().__init__(num_nodes, **options)
        with extra("simulation", "use LocalGrid(processes=...), which is --grid local"):  # here, as Ray loads slowly
            from heterofl_flwr.grids.ray_actors import ActorOptions, start_actors
        environment = _Session.enter()
        try:
            same = ActorOptions(path, num_cpus, num_gpus, environment)
            actors, takes_groups = start_actors(same, min(at_once or num_nodes, num_nodes))
        except BaseException:
            _Session.leave()
            raise
        self._open(Pool(actors, takes_groups, self._contexts, retries=RETRIES, on_close=_Session.leave))
        atexit.register(self._finalizer)  # before Ray ends itself; unlike a method, it does not hold the grid

    def close(self) -> None:
        """End the actors, busy or not, and Ray if this grid has started it. More calls do nothing."""
        super().close()
        atexit.unregister(self._finalizer)


class _Session:
    """The connection to Ray, which grids share. Ray is started if none is here and no cluster is named."""

    _grids: ClassVar[int] = 0
    _environment: ClassVar[Mapping[str, str]] = {}  # what Ray has from this process
    _at_end: ClassVar[ExitStack] = ExitStack()  # ends what the first grid has started
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def enter(cls) -> Mapping[str, str]:
        """Join or start Ray, for one more grid; return what its actors need in their environment."""
        import ray

        own = worker_environment()
        with cls._lock:
            if cls._grids == 0:
                cls._environment, cls._at_end = _connect(ray, own)
            cls._grids += 1
            return {} if own == cls._environment else own  # what Ray has already, actors need not wait for

    @classmethod
    def leave(cls) -> None:
        """Leave Ray; the last grid ends what was started."""
        with cls._lock:
            cls._grids -= 1
            if cls._grids == 0:
                cls._at_end.close()


def _connect(ray: Any, own: Mapping[str, str]) -> tuple[Mapping[str, str], ExitStack]:
    """Join or start Ray; return the part of our environment that it has, and what ends what was started."""
    with ExitStack() as started:
        if ray.is_initialized():
            return {}, started.pop_all()
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            _start(ray, {**_SETTINGS, **own}, started)
            return own, started.pop_all()
        try:
            _init(ray)
        except ConnectionError as error:
            raise ConfigError(f"no Ray answers at RAY_ADDRESS={address!r}: {error}") from error
        started.callback(shut_down, ray)
        return {}, started.pop_all()


def _start(ray: Any, environment: Mapping[str, str], started: ExitStack) -> None:
    """Start Ray here, and the process that removes its folder when this one has ended in any way."""
    own, short = tempfile.gettempdir(), Path("/tmp")  # noqa: S108  # on purpose
    folder = tempfile.mkdtemp(prefix="ray-", dir=short if len(own) >= LONGEST and short.is_dir() else own)
    words = [sys.executable, "-I", "-S", "-c", _SWEEP, folder]
    sweeper = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)  # noqa: S603  # our own text
    started.callback(sweeper.communicate)
    started.callback(shut_down, ray)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # Ray's processes keep it
    try:
        _init(ray, include_dashboard=False, _temp_dir=folder)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


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
