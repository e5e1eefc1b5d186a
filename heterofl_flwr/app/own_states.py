"""What clients keep for themselves between rounds: in files, or in their context where there is no folder.

A run may go on from its last checkpoint, or from the one before, so a client's states of all rounds since are kept, and
the last one before. Each is found by its round: what a round that is repeated has left behind does not count.
"""

from pathlib import Path

from flwr.app import ArrayRecord, Context
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from heterofl_flwr import messages as wire
from heterofl_flwr.errors import HeteroFLError
from heterofl_flwr.methods.callbacks import State
from heterofl_flwr.report.checkpoint import pack
from heterofl_flwr.report.files import remove, write_atomic
from heterofl_flwr.report.states import state_path, states_in

NODE_STATES = "states-path"
"""The key of a node's own config that names a folder for its states."""

_RECORD = "own"


class OwnStates:
    """One client's own parameters, by round.

    Parameters
    ----------
    context : Context
        The node's. Its config may name a folder: nothing that a server sends does.
    partition : int
        The client's number.
    """

    def __init__(self, context: Context, partition: int) -> None:
        self._context = context
        folder = context.node_config.get(NODE_STATES)
        self._folder = Path(str(folder)) / f"{partition:05d}" if folder else None

    def before(self, server_round: int) -> State | None:
        """Return the state that a round begins with; None if there is none yet."""
        if self._folder is None:
            record = self._context.state.get(_RECORD)
            return wire.tensors_of(record, "this node's context") if isinstance(record, ArrayRecord) else None
        paths = [path for number, path in states_in(self._folder).items() if number < server_round]
        return _read(paths[-1]) if paths else None

    def keep(self, server_round: int, state: dict[str, Tensor], every: int) -> None:
        """Keep the state that a round ended with; ``every`` so many rounds the run has a checkpoint."""
        if self._folder is None:
            self._context.state[_RECORD] = ArrayRecord(dict(state))
            return
        write_atomic(state_path(self._folder, server_round), pack(state))
        safe = ((server_round - 1) // every - 1) * every  # the last checkpoint but one
        old = [path for number, path in states_in(self._folder).items() if number <= safe]
        for path in old[:-1]:
            remove(path)


def _read(path: Path) -> State:
    try:
        return dict(load(path.read_bytes()))
    except (OSError, ValueError, SafetensorError) as error:
        raise HeteroFLError(
            f"{path} cannot be read ({error}), and with it this client's own parameters: put back a copy, or "
            f"remove the folder {path.parent} to let the client begin anew"
        ) from error
