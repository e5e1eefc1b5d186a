# ruff: noqa: F401 - others import these names from here
"""Everything of Flower that is not public and that only tests need.

What the package itself needs is in ``heterofl_flwr/transport/compat.py``, which a client loads with every message;
these names load Flower's commands and servers too. They are those of Flower 1.41 and 1.42.
"""

from pathlib import Path
from typing import Any

from flwr.cli.app_cmd.publish import _collect_file_paths, _validate_app_name, _validate_files
from flwr.cli.build import build_fab_from_disk
from flwr.cli.config_utils import load_and_validate
from flwr.clientapp.client_app import ClientAppException
from flwr.common.config import flatten_dict
from flwr.common.logger import ConsoleHandler
from flwr.common.serde import message_to_proto
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, ObjectTree, PullObjectResponse
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
)


def get_flwr_command() -> Any:
    """Return Flower's command ``flwr``, which takes seconds to load."""
    from flwr.cli.app import app

    return app


def check_files_to_publish(app: Path) -> list[Path]:
    """Return the files that ``flwr app publish`` would upload; raise if it would refuse them."""
    files = _collect_file_paths(app)
    _validate_files(files)
    return files


def check_app_to_publish(app: Path) -> dict[str, Any]:
    """Return what an app says of itself; raise if ``flwr app publish`` would refuse it or the name of its folder."""
    _validate_app_name(app.name, "Flower App directory name")
    config, _ = load_and_validate(app / "pyproject.toml", check_module=False)
    return dict(config)
