"""Everything of Flower that is not public, and all that differs between the versions of Flower that are allowed.

Flower has no promise for these names. Where no version stands beside a name, 1.32 to 1.42 have it in the same place.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flwr
from flwr.app import Message
from flwr.app.message import make_message as make_message
from flwr.common.config import get_project_config as get_project_config
from flwr.common.constant import SUPERLINK_NODE_ID as SUPERLINK_NODE_ID
from flwr.common.constant import ErrorCode as ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest as ConfirmMessageReceivedRequest
from flwr.proto.message_pb2 import PullObjectRequest as PullObjectRequest
from flwr.proto.node_pb2 import NodeInfo as NodeInfo
from flwr.supercore.constant import HEAD_BODY_DIVIDER as HEAD_BODY_DIVIDER
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE as SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content as get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents as inflate_object_from_contents
from flwr.supercore.object_ref import load_app as load_app
from flwr.supercore.run import Run as Run

FLOWER = tuple(int(part) for part in flwr.__version__.split(".")[:2])
"""The version of Flower that is installed: the first two numbers."""

NEWEST_TESTED = (1, 42)

NO_FUNCTION = "No {} function registered"
"""Flower's error for a ClientApp without a function for a kind of messages, such as ``query``."""

# mypy reads the names of the newest version alone; the modules of older ones are not there for it to find.
if TYPE_CHECKING or FLOWER >= (1, 34):
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest as PullAppMessagesRequest
else:
    PullAppMessagesRequest = import_module("flwr.proto.appio_pb2").PullAppMessagesRequest

if TYPE_CHECKING or FLOWER >= (1, 38):
    from flwr.supercore.task_identity import TaskIdentity
else:

    class TaskIdentity:
        """Replacement for a class of Flower 1.38; older versions set run and sender when a message is pushed."""

        _run_id: ClassVar[int | None] = None
        _node_id: ClassVar[int | None] = None
        _task_id: ClassVar[int | None] = None


class JsonFormatter(logging.Formatter):
    """One JSON object for each log record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line; its message includes the traceback."""
        now = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        line = {"time": now, "level": record.levelname, "logger": record.name, "message": super().format(record)}
        return json.dumps(line)


def set_log_format(log: str) -> None:
    """Let Flower's own handlers write the time before each line (``text``), or JSON lines (``json``)."""
    for handler in logging.getLogger("flwr").handlers:
        if hasattr(handler, "timestamps"):
            handler.timestamps = True
        if log == "json":  # Flower's handlers ignore formatters, and quote nothing
            handler.format = JsonFormatter().format  # type: ignore[method-assign]


def runs_on_node() -> bool:
    """Whether this process is the one that a SuperNode starts for a message."""
    return Path(sys.argv[0]).stem == "flwr-clientapp"


def warn_if_untested(version: tuple[int, ...] = FLOWER) -> None:
    """Warn of a version of Flower that is newer than any that was tested."""
    if version > NEWEST_TESTED:
        installed, newest = (".".join(map(str, numbers)) for numbers in (version, NEWEST_TESTED))
        warnings.warn(
            f"heterofl-flwr is tested with Flower 1.32 to {newest}, and this is Flower {installed}, whose internals "
            f"may have changed. If anything fails, install flwr=={newest}.* or a newer heterofl-flwr",
            stacklevel=2,
        )


def set_identity(run_id: int | None, node_id: int | None, task_id: int | None = 1) -> None:
    """Say which node of which run this process is; from Flower 1.38 the messages that it makes carry that."""
    identity: Any = TaskIdentity  # whose properties can neither be read as None nor set to it
    identity._run_id, identity._node_id, identity._task_id = run_id, node_id, task_id


def get_identity() -> tuple[int | None, int | None, int | None]:
    """Return the numbers of the run, the node and the task that this process is."""
    return TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id


@contextmanager
def some_identity() -> Iterator[None]:
    """Let messages be made where Flower has not said which node this process is, as under ``start_server``."""
    identity = get_identity()
    if identity[0] is None:
        set_identity(0, 0)
    try:
        yield
    finally:
        set_identity(*identity)


def set_metadata(message: Message, **values: object) -> None:
    """Change metadata of a message: Flower's own grids write them like this, because the properties have no setters."""
    message.metadata.__dict__.update({f"_{name}": value for name, value in values.items()})


def get_nodes(grid: Any) -> Iterable[NodeInfo]:
    """Return what is known of each node: before Flower 1.38 its id alone, afterwards the registered name too."""
    if hasattr(grid, "get_nodes"):
        nodes: Iterable[NodeInfo] = grid.get_nodes()
        return nodes
    return [NodeInfo(node_id=node_id) for node_id in grid.get_node_ids()]


# Flower's grid of a SuperLink: ``HttpGrid`` from 1.35, ``GrpcGrid`` before. Their requests and answers are the same.
_CLIENTS = ("_runtime_client", "_stub")


def has_runtime_client(grid: object) -> bool:
    """Whether a grid is that of a SuperLink."""
    return any(hasattr(type(grid), name) for name in _CLIENTS)


def runtime_client(grid: object) -> Any:
    """Return what sends the requests of a SuperLink's grid: ``PullMessages``, ``PullObject`` and others."""
    name = next(name for name in _CLIENTS if hasattr(type(grid), name))
    return getattr(grid, name)


def connect_length_check(grid: object, check: Callable[[int], None]) -> bool:
    """Call ``check`` with the length of each answer before it is read; return whether this Flower lets one do so.

    From 1.35 answers come by HTTP, through httpx, and ``check`` may raise. By gRPC, their length is not known before.
    """
    client: Any = getattr(getattr(grid, "_runtime_client", None), "_client", None)
    if not hasattr(client, "event_hooks"):
        return False

    def hook(response: Any) -> None:
        check(int(response.headers.get("content-length", 0)))

    client.event_hooks["response"] = [*client.event_hooks.get("response", []), hook]
    return True
