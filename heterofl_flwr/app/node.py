"""What an instruction of the server means on a node of our own app: data, model, training, and what the node keeps."""

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import chain
from typing import TypeVar

import torch
from flwr.app import ConfigRecord, Context, Message
from torch import Tensor, nn

from heterofl_flwr.app.workload import Workload, load_workload
from heterofl_flwr.client import note_steps, own_part, seed_of, share_of_work, stage_penalty, submodel
from heterofl_flwr.client.client_context import keep_part
from heterofl_flwr.client.node_config import read_capability
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.data import Split, load_dataset
from heterofl_flwr.data.align import align
from heterofl_flwr.nn.measure_moments import batch_norms, collect_moments
from heterofl_flwr.nn.models import Build
from heterofl_flwr.nn.penalty import Penalty
from heterofl_flwr.nn.static_norm import with_static_norm
from heterofl_flwr.training import TrainingJob, TrainOptions, TrainResult
from heterofl_flwr.transport import messages

NODE_DATA = "data-path"
"""The key of a node's own config that names a folder with data of its own."""

Value = TypeVar("Value", int, float, str)


class Instruction:
    """A message of the server, with this node's data and the model that it is about."""

    def __init__(self, message: Message, context: Context) -> None:
        self.message, self.context = message, context
        self.workload = load_workload(context.run_config)
        self.has_own_data = NODE_DATA in context.node_config  # so that it has no part of ``data.name``

    @cached_property
    def config(self) -> ConfigRecord:
        """What the message says beside its parameters."""
        return messages.read_config(self.message)

    def value(self, key: str, kind: type[Value]) -> Value:
        """Return a value of the message's config; one that is missing or of another type raises ``ReplyError``."""
        return messages.read_value(self.config, key, kind)

    @property
    def rate(self) -> float:
        """The rate of the model that the message is about."""
        return self.value(messages.RATE, float)

    @property
    def seed(self) -> int:
        """A function of the run's seed, the round and the client."""
        return seed_of(self.message)

    @property
    def options(self) -> TrainOptions:
        """How the message asks its client to train."""
        return replace(
            self.workload.settings.train,
            learning_rate=self.value(messages.LEARNING_RATE, float),
            proximal=messages.read_optional(self.config, messages.PROXIMAL_MU, float) or 0.0,
            augment=self.workload.facts.augment,
        )

    @cached_property
    def data(self) -> tuple[Split, Split, tuple[int, ...]]:
        """The node's training and test examples, and its classes."""
        if self.has_own_data:
            return _load_own_data(str(self.context.node_config[NODE_DATA]), self.workload)
        said = read_capability(self.context)
        partition, number = said.get(messages.PARTITION), said.get(messages.NUM_PARTITIONS)
        if not isinstance(partition, int) or not isinstance(number, int):
            raise ConfigError(
                "this node does not know its data: start it with --node-config 'partition-id=0 num-partitions=10' for "
                "a part of data.name, or with --node-config 'data-path=\"/path/to/folder\"' for data of its own"
            )
        return self.workload.part(partition, number)

    @property
    def clients(self) -> int:
        """The number of clients among which the data are split, as this node knows it; 0 if it does not."""
        number = read_capability(self.context).get(messages.NUM_PARTITIONS)
        return number if isinstance(number, int) and not self.has_own_data else 0

    @property
    def architecture(self) -> str:
        """The name of the architecture of the client that the message goes to."""
        return self.workload.architecture(self.value(messages.PARTITION, int))

    @cached_property
    def build(self) -> Build:
        """From a rate to the model of the client that the message goes to."""
        return self.workload.builds[self.architecture]

    def load_model(self) -> nn.Module:
        """Return the model that the message is about, on the device, with what this node keeps for itself."""
        return submodel(self.message, self.build, context=self.context, seed_torch=True).to(self.workload.device)

    def keep(self, model: nn.Module) -> None:
        """Keep a trained model for the next rounds, where ``reply`` does not."""
        keep_part(self.context, self.config, own_part(self.message, model))

    def training_job(self, model: nn.Module) -> TrainingJob:
        """Return the training of a model on this client's examples, with the mask of its classes where there is one."""
        split, _, classes = self.data
        penalty = stage_penalty(self.message, self.context)
        return TrainingJob(
            model=self.workload.with_inner_widths(model, self.rate, self.build),
            quadratic=None if penalty.quadratic is None else penalty.quadratic.aligned(model),
            penalty=(lambda: Penalty(terms=penalty.terms)(model)) if penalty.terms else None,
            split=split,
            seed=self.seed,
            classes=torch.tensor(classes) if self.workload.masked else None,
            step_share=share_of_work(self.message),
            joint_loss=self.workload.joint_loss(self.value(messages.SERVER_ROUND, int)),
        )

    def note_result(self, model: nn.Module, result: TrainResult) -> None:
        """Note the length of a trained model's steps along a constant gradient, which momentum lengthens."""
        momentum, steps = self.options.momentum, result.steps
        length = float(steps)
        if momentum:
            length = (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)
        note_steps(model, self.options.learning_rate * length)

    def with_own_moments(self, model: nn.Module) -> nn.Module:
        """Return this client's own model with the static batch norm moments of what it was trained on."""
        if not batch_norms(model):
            return model
        kind = self.workload.settings.fidelity
        moments = collect_moments(model, self.trained_batches(), kind, together=self.workload.moments_together)
        return with_static_norm(model, moments)

    def trained_batches(self) -> Iterable[Tensor]:
        """Return what this client's own model is trained on: its data and, in FedH2L, the seed set."""
        workload = self.workload
        own = workload.moments_batches(self.data[0], self.seed)
        if workload.settings.server.strategy != "fedh2l":
            return own
        return chain(own, workload.moments_batches(workload.seeds, self.seed))


@lru_cache(maxsize=2)
def _load_own_data(path: str, workload: Workload) -> tuple[Split, Split, tuple[int, ...]]:
    own = align(load_dataset(path, label=workload.settings.data.label), workload.terms)
    return own.train.to(workload.device), own.test.to(workload.device), tuple(own.train.targets.unique().tolist())
