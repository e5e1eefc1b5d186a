"""The connection to Ray. With ``RAY_ADDRESS``, join a cluster; otherwise start Ray on this machine."""

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import ray

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.common.user_code import VARIABLE
from heterofl_flwr.data.shared import VARIABLE as SHARED

logger = logging.getLogger(__name__)

SECONDS_TO_END = 5.0
"""Seconds to wait for the end of each of Ray's processes."""

SECONDS_TO_CONNECT = 5.0
"""Seconds to wait for a connection to a cluster's port; Ray itself would try for half a minute."""

LONGEST = 28
"""Length from which the temporary folder's path is too long for Ray's sockets, and ``/tmp`` is used instead."""

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",  # processes that a client started end with its actor
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # seconds until Ray's processes end after this one is killed
}

_NEEDLESS = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods with which Ray starts processes that only clusters and dashboards need."""


class Session:
    """The connection to Ray, which all grids of this process share."""

    _grids: ClassVar[int] = 0
    _environment: ClassVar[Mapping[str, str]] = {}  # variables with which this process started Ray
    _at_end: ClassVar[ExitStack] = ExitStack()  # callbacks that end what the first grid started
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def enter(cls) -> Mapping[str, str]:
        """Connect if no grid is open. Return the environment variables to set in the new grid's actors."""
        environment = _environment()
        with cls._lock, ExitStack() as started:
            if cls._grids == 0:
                cls._environment, cls._at_end = _connect(environment, started), started.pop_all()
            cls._grids += 1
            return {} if environment == cls._environment else environment  # Ray passes its own variables to actors

    @classmethod
    def leave(cls) -> None:
        """End a grid's use of Ray. The last grid ends what ``enter`` started: a connection, or Ray itself."""
        with cls._lock:
            cls._grids -= 1
            if cls._grids == 0:
                cls._at_end.close()


def _connect(environment: Mapping[str, str], started: ExitStack) -> Mapping[str, str]:
    """Join this process's Ray, or that of ``RAY_ADDRESS``, and return {}; raise ``ConfigError`` if it does not answer.

    If there is neither, start Ray with ``environment`` and return ``environment``.
    """
    if ray.is_initialized():
        return {}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        _start({**_SETTINGS, **environment}, started)
        return environment
    if address.startswith("ray://"):
        raise ConfigError(
            f"RAY_ADDRESS is {address!r}, for programs outside of the cluster; expected the address of its head, "
            f"such as RAY_ADDRESS={urlsplit(address).hostname}:6379, and this command on a machine of the cluster"
        )
    try:
        _probe(address)
        _init()
    except (OSError, ValueError) as error:  # ValueError: the port is not a number
        raise ConfigError(f"no Ray answers at RAY_ADDRESS={address!r}: {error}") from error
    started.callback(shut_down)
    if os.environ.get("RAY_AUTH_MODE", "disabled") == "disabled":
        logger.warning(
            "The Ray cluster at RAY_ADDRESS=%r asks for no token: whoever reaches its ports can run programs "
            "there. Set RAY_AUTH_MODE=token on all its machines and here.",
            address,
        )
    return {}


def _probe(address: str) -> None:
    place = urlsplit(f"//{address.rpartition('://')[2]}")
    if place.port is not None:
        socket.create_connection((place.hostname or "", place.port), SECONDS_TO_CONNECT).close()


def _start(environment: Mapping[str, str], started: ExitStack) -> None:
    default, short = tempfile.gettempdir(), Path("/tmp")  # noqa: S108  # on purpose
    folder = tempfile.mkdtemp(prefix="ray-", dir=short if len(default) >= LONGEST and short.is_dir() else default)
    started.callback(shutil.rmtree, folder, ignore_errors=True)
    # Ray listens on all network interfaces, so it must require a token. Its folder can be written by all users, so it
    # is inside a folder that only this user can enter.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    started.callback(_read_authentication)
    started.callback(shut_down)
    environment = {**environment, **token}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # Ray's processes inherit these variables
    try:
        _read_authentication()
        with fewer_processes():
            _init(include_dashboard=False, _temp_dir=os.path.join(folder, "r"))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def fewer_processes() -> Iterator[None]:
    """Context manager: let Ray start no autoscaler, no reader of its logs and no API server.

    Only clusters and dashboards need them. Each takes a second to start, and the memory of a Python process.
    """
    node = ray._private.node.Node
    methods = {name: getattr(node, name) for name in _NEEDLESS if hasattr(node, name)}
    for name in methods:
        setattr(node, name, lambda self, **options: None)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(node, name, method)


def _read_authentication() -> None:
    """Make Ray read its authentication mode and token again. Ray itself reads the mode only on import."""
    native: Any = ray._raylet
    native.AuthenticationTokenLoader.instance().reset_cache()
    native.Config.initialize("")


def shut_down() -> None:
    """Disconnect from Ray. Wait up to ``SECONDS_TO_END`` seconds for each process that Ray started here to end.

    If Ray's process ``gcs_server`` has already ended, kill the other processes instead of disconnecting.
    """
    node: Any = ray._private.worker._global_node
    started: list[Any] = [info.process for infos in node.all_processes.values() for info in infos] if node else []
    if node and any(info.process.poll() is not None for info in node.all_processes.get("gcs_server", ())):
        for process in started:  # ray.shutdown() would end this process before the error is reported
            process.kill()
    else:
        ray.shutdown()
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SECONDS_TO_END)


def check_alive() -> None:
    """Raise ``HeteroFLError`` if a process of Ray has ended, because later calls to Ray would hang."""
    node: Any = ray._private.worker._global_node
    for name in ("gcs_server", "raylet"):
        for info in node.all_processes.get(name, ()) if node else ():
            if (code := info.process.poll()) is not None:
                raise HeteroFLError(
                    f"Ray cannot go on: its process {name} has ended (exit code {code}), maybe for lack of memory"
                )


def _init(**options: Any) -> None:
    """Call ``ray.init`` without output, and restore the handler of SIGTERM."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on the behaviour of later versions with num_gpus=0
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if is_main:
        signal.signal(signal.SIGTERM, handler)  # ray.init sets its own handler


def _environment() -> dict[str, str]:
    modules = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    inherited = {name: os.environ[name] for name in (VARIABLE, SHARED) if name in os.environ}
    return {**threads, **inherited, "PYTHONPATH": modules}
