"""State of a client between messages: personal parameters and tensors of stages.

Both are in the client's context, or in files below ``states-path`` of the node config.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from flwr.app import ArrayRecord, ConfigRecord, Context, MessageType
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from heterofl_flwr.client.instruction import Instruction
from heterofl_flwr.common.errors import HeteroFLError, ReplyError
from heterofl_flwr.common.files import CLIENT_STATES, files_by_round, remove, write_atomic
from heterofl_flwr.common.named_tensors import pack
from heterofl_flwr.transport.arrays import pack_tensors, read_tensors
from heterofl_flwr.transport.messages import TRAIN_PUBLISH

NODE_STATES = "states-path"
"""Key of the node config: path of the folder for clients' states. The server cannot set it."""

STAGES = "stages/"
"""Name prefix of the tensors of stages."""

_TENSORS = "heterofl-own"
"""Name prefix of the context record with a client's tensors; the run id and the round follow."""

_NOTES = "heterofl-round"
"""Name of the context record with the per-round state of stages, which is never written to disk."""


def load_tensors(context: Context, instruction: Instruction) -> dict[str, Tensor] | None:
    """Return the tensors that this client saved last in this run; None if it saved none.

    After a resume, tensors from rounds that the run repeats are ignored. In training, tensors of rounds after
    ``Instruction.counted_round`` are ignored too.
    """
    if folder := _folder(context, instruction):
        return _read_file(folder, instruction)
    name = _find_record(context, instruction)
    record = context.state.get(name)
    return read_tensors(record, "this client's context") if isinstance(record, ArrayRecord) else None


def save_tensors(context: Context, instruction: Instruction, tensors: Mapping[str, Tensor]) -> None:
    """Save a client's tensors after training, in a file or in its context.

    If a tensor contains NaN or infinity, raise ``ReplyError``, and leave the previously saved state unchanged. Later
    training would not recover from a state with such a tensor.
    """
    if infinite := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ReplyError(
            f"{infinite[0]}, which stays with this client, contains NaN or infinity, and is not saved: train with a "
            f"lower learning rate"
        )
    if folder := _folder(context, instruction):
        _write_file(folder, instruction, tensors)
        return
    # The reply may not count, so the tensors that it began with stay until the next one is saved.
    counted = "" if instruction.counted_round is None else _find_record(context, instruction)
    for name in [name for name in context.state if name.startswith(_TENSORS) and name != counted]:
        del context.state[name]
    context.state[_record_name(instruction, instruction.server_round)] = pack_tensors(tensors)


class NodeFiles:
    """Files of a node, in the folder ``node-<partition-id>`` below ``states-path``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def of(cls, node_config: Mapping[str, object]) -> "NodeFiles | None":
        """Return the files of a node; None without ``states-path``."""
        folder = node_config.get(NODE_STATES)
        return cls(Path(str(folder)) / f"node-{node_config.get('partition-id', 'alone')}") if folder else None

    def read(self, name: str) -> bytes | None:
        """Return the content of a file; None if it does not exist."""
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file."""
        write_atomic(self._folder / name, data)


def load_notes(context: Context) -> dict[str, bytes]:
    """Return the client stages' per-round state that was saved last; {} if no state was saved."""
    record = context.state.get(_NOTES)
    return cast("dict[str, bytes]", dict(record)) if isinstance(record, ConfigRecord) else {}


def save_notes(context: Context, notes: Mapping[str, bytes]) -> None:
    """Save the client stages' per-round state for later messages, in the context and never on disk."""
    context.state[_NOTES] = ConfigRecord(dict(notes))


def _record_name(instruction: Instruction, server_round: int | str) -> str:
    return f"{_TENSORS}-{instruction.run_key or 0:016x}-{server_round}"


def _find_record(context: Context, instruction: Instruction) -> str:
    """Return the name of the context record with the state to load; '' if there is none."""
    start, end = _record_name(instruction, ""), _end(instruction)
    rounds = [int(name.removeprefix(start)) for name in context.state if name.startswith(start)]
    latest = max((number for number in rounds if number < end), default=None)
    return "" if latest is None else _record_name(instruction, latest)


def _end(instruction: Instruction) -> int:
    """Return the exclusive upper bound on the rounds whose saved state may be loaded.

    After a resume, there may be saved states of the current round and of later rounds. With a ``counted_round``, there
    may be saved states of replies that did not count.
    """
    # In the round's first message, a state of this round is ignored; later messages read it.
    if instruction.kind not in (MessageType.TRAIN, TRAIN_PUBLISH):
        return instruction.server_round + 1
    counted = instruction.counted_round
    return instruction.server_round if counted is None else min(instruction.server_round, counted + 1)


def _folder(context: Context, instruction: Instruction) -> Path | None:
    if not (folder := context.node_config.get(NODE_STATES)) or instruction.run_key is None:
        return None
    return Path(str(folder)) / f"{instruction.run_key:016x}" / f"{instruction.partition:05d}"


def _read_file(folder: Path, instruction: Instruction) -> dict[str, Tensor] | None:
    end = _end(instruction)
    paths = [path for number, path in files_by_round(folder, CLIENT_STATES).items() if number < end]
    if not paths:
        return None
    try:
        return dict(load(paths[-1].read_bytes()))
    except (OSError, ValueError, SafetensorError) as error:
        raise HeteroFLError(
            f"{paths[-1]} cannot be read ({error}), and with it this client's own parameters: put back a copy, or "
            f"remove the folder {folder} to let the client begin anew"
        ) from error


def _write_file(folder: Path, instruction: Instruction, tensors: Mapping[str, Tensor]) -> None:
    # For a resume from the oldest checkpoint, keep the newest of the files of rounds up to ``oldest_checkpoint``.
    write_atomic(folder / CLIENT_STATES.replace("*", f"{instruction.server_round:06d}"), pack(tensors))
    oldest, paths = instruction.oldest_checkpoint, files_by_round(folder, CLIENT_STATES)
    uncounted = [number for number in paths if _end(instruction) <= number < instruction.server_round]
    unneeded = [number for number in paths if number <= oldest and number not in uncounted]
    for number in (*uncounted, *unneeded[:-1]):
        remove(paths[number])
