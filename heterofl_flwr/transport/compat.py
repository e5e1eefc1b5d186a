"""All uses of names that are not public in Flower, or that differ between versions.

A name is the same in Flower 1.32 to 1.42 unless a comment next to it gives a version.
"""

import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import flwr
from flwr.app import Message
from flwr.app.message import make_message as make_message
from flwr.common.config import get_project_config as get_project_config, get_project_dir
from flwr.common.constant import SUPERLINK_NODE_ID as SUPERLINK_NODE_ID, ErrorCode as ErrorCode
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest as ConfirmMessageReceivedRequest,
    PullObjectRequest as PullObjectRequest,
)
from flwr.proto.node_pb2 import NodeInfo as NodeInfo
from flwr.supercore.constant import HEAD_BODY_DIVIDER as HEAD_BODY_DIVIDER, SYSTEM_MESSAGE_TYPE as SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import (
    get_object_head_values_from_object_content as get_object_head_values_from_object_content,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents as inflate_object_from_contents
from flwr.supercore.object_ref import load_app as load_app
from flwr.supercore.run import Run as Run

from heterofl_flwr.common.files import plain
from heterofl_flwr.federation.round_record import ROUND

FLOWER = tuple(int(part) for part in flwr.__version__.split(".")[:2])
"""The first two numbers of the installed version of Flower."""

NEWEST_TESTED = (1, 42)

NO_FUNCTION = "No {} function registered"
"""Text of Flower's error for a ClientApp without a handler for a message type, such as ``query``."""

# mypy sees only the newest version's names, because the modules of older versions are not installed.
if TYPE_CHECKING or FLOWER >= (1, 34):
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest as PullAppMessagesRequest
else:
    PullAppMessagesRequest = import_module("flwr.proto.appio_pb2").PullAppMessagesRequest

if TYPE_CHECKING or FLOWER >= (1, 38):
    from flwr.supercore.task_identity import TaskIdentity
else:

    class TaskIdentity:
        """Replacement for Flower's ``TaskIdentity`` in versions of Flower before 1.38."""

        _run_id: ClassVar[int | None] = None


class JsonFormatter(logging.Formatter):
    """Formatter that writes one JSON object for each log record.

    If the log record has a ``RoundRecord``, the JSON object contains it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line of JSON."""
        now = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        line = {"time": now, "level": record.levelname, "logger": record.name, "message": super().format(record)}
        line |= {ROUND: vars(record)[ROUND].to_json()} if ROUND in vars(record) else {}
        return json.dumps(plain(line))


def set_log_format(log: str) -> None:
    """Make Flower's log handlers write lines of JSON if ``log`` is ``json``, else lines of text with the time."""
    for handler in logging.getLogger("flwr").handlers:
        if hasattr(handler, "timestamps"):
            handler.timestamps = True
        if log == "json":  # format is replaced, because Flower's handlers ignore formatters
            handler.format = JsonFormatter().format  # type: ignore[method-assign]


def runs_on_node() -> bool:
    """Whether a SuperNode started this process to run the ClientApp."""
    return Path(sys.argv[0]).stem == "flwr-clientapp"


def apps_folder() -> Path:
    """Return the folder into which Flower installs apps."""
    return get_project_dir("publisher/name", "0", "0").parent.absolute()


def warn_if_untested(version: tuple[int, ...] = FLOWER) -> None:
    """Warn if the installed Flower is newer than the newest tested version."""
    if version > NEWEST_TESTED:
        installed, newest = (".".join(map(str, numbers)) for numbers in (version, NEWEST_TESTED))
        warnings.warn(
            f"heterofl-flwr is tested with Flower 1.32 to {newest}, and this is Flower {installed}, whose internals "
            f"may have changed. If anything fails, install flwr=={newest}.* or a newer heterofl-flwr",
            stacklevel=2,
        )


def set_identity(run_id: int, node_id: int) -> None:
    """Set the run and the sender of new messages of this process."""
    TaskIdentity._run_id, TaskIdentity._node_id, TaskIdentity._task_id = run_id, node_id, 1


def ensure_identity() -> None:
    """Make new messages possible in this process: if Flower has set no ids of run and node, set both to 0."""
    if TaskIdentity._run_id is None:
        set_identity(0, 0)


def set_metadata(message: Message, **values: object) -> None:
    """Set properties of a message's metadata, also those that have no setter, such as ``message_id``."""
    message.metadata.__dict__.update({f"_{name}": value for name, value in values.items()})


def get_nodes(grid: Any) -> Iterable[NodeInfo]:
    """Return Flower's information about each node: its id and, from Flower 1.38 on, its name."""
    if hasattr(grid, "get_nodes"):
        nodes: Iterable[NodeInfo] = grid.get_nodes()
        return nodes
    return [NodeInfo(node_id=node_id) for node_id in grid.get_node_ids()]


# Flower's grid of a SuperLink is ``HttpGrid`` from 1.35, ``GrpcGrid`` before; both have the same requests.
_CLIENTS = ("_runtime_client", "_stub")


def has_runtime_client(grid: object) -> bool:
    """Whether a grid is Flower's grid of a SuperLink (``HttpGrid`` or ``GrpcGrid``)."""
    return any(hasattr(type(grid), name) for name in _CLIENTS)


def runtime_client(grid: object) -> Any:
    """Return the RPC client of a SuperLink's grid."""
    name = next(name for name in _CLIENTS if hasattr(type(grid), name))
    return getattr(grid, name)


def connect_length_check(grid: object, check: Callable[[int], None]) -> bool:
    """Make the grid call ``check`` with the length of each response before the response is read.

    Return False if this is impossible, as with gRPC.
    """
    client: Any = getattr(getattr(grid, "_runtime_client", None), "_client", None)
    if not hasattr(client, "event_hooks"):
        return False

    def hook(response: Any) -> None:
        check(int(response.headers.get("content-length", 0)))

    client.event_hooks["response"] = [*client.event_hooks.get("response", []), hook]
    return True
