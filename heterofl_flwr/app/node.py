"""What a node of our own app has: its data, the model that a message is about, and what it keeps for itself."""

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from heterofl_flwr import messages as wire
from heterofl_flwr.app.task import Task
from heterofl_flwr.capability import capability_of
from heterofl_flwr.client import Build, own_part, seed_of, share_of_work, submodel
from heterofl_flwr.data import Split, load_dataset
from heterofl_flwr.errors import ConfigError, HeteroFLError, ReplyError
from heterofl_flwr.federation.records import State
from heterofl_flwr.runs.checkpoint import pack
from heterofl_flwr.runs.files import client_state_path, client_states, remove, write_atomic
from heterofl_flwr.training import TrainingJob, TrainOptions
from heterofl_flwr.training.capacity import Trial

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
        paths = [path for number, path in client_states(self._folder).items() if number < server_round]
        return _read(paths[-1]) if paths else None

    def keep(self, server_round: int, state: dict[str, Tensor], every: int) -> None:
        """Keep the state that a round ended with; ``every`` so many rounds the run has a checkpoint."""
        if self._folder is None:
            self._context.state[_RECORD] = ArrayRecord(dict(state))
            return
        write_atomic(client_state_path(self._folder, server_round), pack(state))
        safe = ((server_round - 1) // every - 1) * every  # the last checkpoint but one
        old = [path for number, path in client_states(self._folder).items() if number <= safe]
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


NODE_DATA = "data-path"

SERVER = wire.SERVER

OPENS_ROUND = ("train", wire.TRAIN_PUBLISH)
"""Types of messages that begin with what the rounds before have left; all others follow in the same round."""


def data_of(task: Task, context: Context) -> tuple[Split, Split, tuple[int, ...]]:
    """Return this node's training and test examples and its classes."""
    node = context.node_config
    if NODE_DATA in node:
        return _own_data(str(node[NODE_DATA]), task.device)
    said = capability_of(context)
    partition, number = said.get(wire.PARTITION), said.get(wire.NUM_PARTITIONS)
    if not isinstance(partition, int) or not isinstance(number, int):
        raise ConfigError(
            "this node does not know its data: start it with --node-config 'partition-id=0 num-partitions=10' for a "
            "part of data.name, or with --node-config 'data-path=\"/path/to/folder\"' for data of its own"
        )
    return task.part(partition, number)


def build_of(task: Task, message: Message) -> Build:
    """Return the function from a rate to the model of the client that a message goes to."""
    family = wire.config_of(message, SERVER).get(wire.FAMILY)
    if family is None:
        return task.build_of(_number(message, wire.PARTITION))
    if family not in task.families:
        raise ReplyError(f"{SERVER} sent {family!r} as {wire.FAMILY}, expected one of {', '.join(task.families)}")
    return task.families[str(family)]


def clients_of(context: Context) -> int:
    """Return to how many clients the data were dealt, as this node knows it; 0 if it does not."""
    number = capability_of(context).get(wire.NUM_PARTITIONS)
    return number if isinstance(number, int) and NODE_DATA not in context.node_config else 0


def model_of(task: Task, message: Message, context: Context) -> nn.Module:
    """Return the model that a message is about, on the device, with what this node keeps for itself."""
    build = build_of(task, message)
    if not task.personal:
        return submodel(message, build, seed_torch=True).to(task.device)
    after = message.metadata.message_type not in OPENS_ROUND
    kept = _states(message, context).before(_number(message, wire.SERVER_ROUND) + after)
    return submodel(message, build, kept, seed_torch=True).to(task.device)


def trial_of(task: Task, context: Context) -> Trial:
    """Return what this node does in a round, for one that measures itself."""
    split, _, _ = data_of(task, context)
    size, epochs, reading = task.settings.train.batch_size, task.settings.train.epochs, split.reading
    inputs = split.inputs[:size] if reading is None else split.inputs[:size, : reading.length]
    pieces = 1 if reading is None else math.ceil(split.inputs.shape[1] / reading.length)
    return Trial(task.build, inputs, epochs * math.ceil(len(split) / size) * pieces, task.device)


def work_of(task: Task, message: Message, model: nn.Module, split: Split, classes: Sequence[int]) -> TrainingJob:
    """Return what a client trains: a model on its examples, with the mask of its classes where there is one."""
    masked = torch.tensor(classes) if task.masked else None
    return TrainingJob(
        model=model, split=split, seed=seed_of(message), classes=masked, step_share=share_of_work(message)
    )


def keep_own(task: Task, message: Message, context: Context, model: nn.Module) -> None:
    """Keep what stays here of a model that was trained."""
    every = task.settings.run.checkpoint_every
    _states(message, context).keep(_number(message, wire.SERVER_ROUND), own_part(message, model), every)


def rate_of(message: Message) -> float:
    """Return the rate of the model that a message is about."""
    return wire.value_of(wire.config_of(message, SERVER), wire.RATE, float, SERVER)


def options_of(task: Task, message: Message) -> TrainOptions:
    """Return how a message asks its client to train."""
    return task.options(wire.value_of(wire.config_of(message, SERVER), wire.LEARNING_RATE, float, SERVER))


def _states(message: Message, context: Context) -> OwnStates:
    return OwnStates(context, _number(message, wire.PARTITION))


def _number(message: Message, key: str) -> int:
    return wire.value_of(wire.config_of(message, SERVER), key, int, SERVER)


@lru_cache(maxsize=2)
def _own_data(path: str, device: torch.device) -> tuple[Split, Split, tuple[int, ...]]:
    dataset = load_dataset(path)
    return dataset.train.to(device), dataset.test.to(device), tuple(dataset.train.targets.unique().tolist())
