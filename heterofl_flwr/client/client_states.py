"""What clients keep on a node's disk: a file for each client and round, so that a run can be resumed."""

from collections.abc import Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.common.files import CLIENT_STATES, files_by_round, remove, write_atomic
from heterofl_flwr.common.tensor_files import pack
from heterofl_flwr.transport import messages

NODE_STATES = "states-path"
"""The key of a node's own config that names a folder for its states; nothing that a server sends does."""

OPENS_ROUND = ("train", messages.TRAIN_PUBLISH)
"""Types of messages that begin with what the rounds before have left; the others follow in the same round."""


def states_folder(context: Context, config: ConfigRecord) -> Path | None:
    """Return where a client's states of a run are, if its node has a folder; another run's would mean nothing."""
    run_key = messages.read_optional(config, messages.RUN_KEY, int)
    if not (folder := context.node_config.get(NODE_STATES)) or run_key is None:
        return None
    return Path(str(folder)) / f"{run_key:016x}" / f"{messages.read_value(config, messages.PARTITION, int):05d}"


def read_state(folder: Path, message: Message) -> dict[str, Tensor] | None:
    """Return what a client keeps as the rounds before a message have left it; None if there is nothing yet."""
    before = messages.read_value(messages.read_config(message), messages.SERVER_ROUND, int)
    before += message.metadata.message_type not in OPENS_ROUND
    paths = [path for number, path in files_by_round(folder, CLIENT_STATES).items() if number < before]
    if not paths:
        return None
    try:
        return dict(load(paths[-1].read_bytes()))
    except (OSError, ValueError, SafetensorError) as error:
        raise HeteroFLError(
            f"{paths[-1]} cannot be read ({error}), and with it this client's own parameters: put back a copy, or "
            f"remove the folder {folder} to let the client begin anew"
        ) from error


def keep_state(folder: Path, config: ConfigRecord, state: Mapping[str, Tensor]) -> None:
    """Keep what a client keeps at the end of a round, and drop what no checkpoint of the run can need any more."""
    server_round = messages.read_value(config, messages.SERVER_ROUND, int)
    every = messages.read_optional(config, messages.CHECKPOINT_EVERY, int) or 1
    write_atomic(folder / CLIENT_STATES.replace("*", f"{server_round:06d}"), pack(state))
    safe = ((server_round - 1) // every - 1) * every  # the last checkpoint but one
    old = [path for number, path in files_by_round(folder, CLIENT_STATES).items() if number <= safe]
    for path in old[:-1]:
        remove(path)
