"""The connection to Ray: a cluster is joined where one is named, else Ray is started here, and ended with its grids."""

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
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import ray

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.common.user_code import VARIABLE

logger = logging.getLogger(__name__)

SECONDS_TO_END = 5.0
"""Time for each of Ray's processes to end."""

SECONDS_TO_CONNECT = 5.0
"""Time for a cluster to answer at its port; Ray itself tries for half a minute."""

LONGEST = 28
"""Characters of the folder in which Ray's may lie: the names of sockets have to be short."""

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",  # what a client has started ends with its actor
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # until Ray's processes end by themselves, if this one is killed
}


class Session:
    """The connection to Ray, which grids share. Ray is started if none is here and no cluster is named."""

    _grids: ClassVar[int] = 0
    _environment: ClassVar[Mapping[str, str]] = {}  # what Ray has from this process
    _at_end: ClassVar[ExitStack] = ExitStack()  # ends what the first grid has started
    _lock: ClassVar[threading.Lock] = threading.Lock()

    @classmethod
    def enter(cls) -> Mapping[str, str]:
        """Join or start Ray, for one more grid; return what its actors need in their environment."""
        environment = _environment()
        with cls._lock, ExitStack() as started:
            if cls._grids == 0:
                cls._environment, cls._at_end = _connect(environment, started), started.pop_all()
            cls._grids += 1
            return {} if environment == cls._environment else environment  # Ray has it already

    @classmethod
    def leave(cls) -> None:
        """Leave Ray; the last grid ends what was started."""
        with cls._lock:
            cls._grids -= 1
            if cls._grids == 0:
                cls._at_end.close()


def _connect(environment: Mapping[str, str], started: ExitStack) -> Mapping[str, str]:
    """Join or start Ray, with what ends what was started; return the part of our environment that it has."""
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
    except (OSError, ValueError) as error:  # a port that is no number, too
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
    """Raise ``OSError`` if an address has a port at which nothing listens; ``auto`` has no port."""
    place = urlsplit(f"//{address.rpartition('://')[2]}")
    if place.port is not None:
        socket.create_connection((place.hostname or "", place.port), SECONDS_TO_CONNECT).close()


def _start(environment: Mapping[str, str], started: ExitStack) -> None:
    """Start Ray here, in a folder that is removed at the end."""
    default, short = tempfile.gettempdir(), Path("/tmp")  # noqa: S108  # on purpose
    folder = tempfile.mkdtemp(prefix="ray-", dir=short if len(default) >= LONGEST and short.is_dir() else default)
    started.callback(shutil.rmtree, folder, ignore_errors=True)
    # Ray listens on all interfaces, so it has to ask for a token. It lets everybody write into its folder, so that lies
    # in one that nobody else can enter.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    started.callback(_read_authentication)
    started.callback(shut_down)
    environment = {**environment, **token}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)  # Ray's processes keep it
    try:
        _read_authentication()
        _init(include_dashboard=False, _temp_dir=os.path.join(folder, "r"))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _read_authentication() -> None:
    """Let Ray read anew from the environment whether it has a token; else it has what it was imported with."""
    native: Any = ray._raylet
    native.AuthenticationTokenLoader.instance().reset_cache()
    native.Config.initialize("")


def shut_down() -> None:
    """Leave Ray, and wait for the processes that this one has started for it: Ray ends them, but does not wait."""
    node: Any = ray._private.worker._global_node
    started: list[Any] = [info.process for infos in node.all_processes.values() for info in infos] if node else []
    ray.shutdown()
    for process in started:
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=SECONDS_TO_END)


def check_alive() -> None:
    """Raise ``HeteroFLError`` if one of Ray's own processes has ended that this one has started: calls then hang."""
    node: Any = ray._private.worker._global_node
    for name in ("gcs_server", "raylet"):
        for info in node.all_processes.get(name, ()) if node else ():
            if (code := info.process.poll()) is not None:
                raise HeteroFLError(
                    f"Ray cannot go on: its process {name} has ended (exit code {code}), maybe for lack of memory"
                )


def _init(**options: Any) -> None:
    """Let Ray say nothing, and leave this process's signals alone."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of what later versions do when num_gpus is 0
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
    if is_main:
        signal.signal(signal.SIGTERM, handler)  # Ray sets its own


def _environment() -> dict[str, str]:
    """Return what an actor's environment adds: the same modules can be imported, and each library uses one thread."""
    modules = os.pathsep.join(os.path.abspath(path) for path in sys.path)
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    code = {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}
    return {**threads, **code, "PYTHONPATH": modules}
