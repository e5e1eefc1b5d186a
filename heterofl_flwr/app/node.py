"""``AppTask``: the ``Task`` of this package's ClientApp, with the node's data."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from itertools import chain

import torch
from flwr.app import Context, Message
from torch import Tensor, nn

from heterofl_flwr.app.workload import NodeData, Workload, load_workload
from heterofl_flwr.client.node_config import read_capability
from heterofl_flwr.client.task import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.randomness import seed_torch
from heterofl_flwr.data import load_dataset
from heterofl_flwr.data.align import align
from heterofl_flwr.nn.measure_moments import batch_norms, collect_moments
from heterofl_flwr.nn.penalty import Penalty
from heterofl_flwr.nn.static_norm import set_static_norm
from heterofl_flwr.training import TrainingJob, TrainOptions
from heterofl_flwr.transport import messages, reading

NODE_DATA = "data-path"
"""Node config key for the folder with the node's own data."""


class AppTask(Task):
    """``Task`` of this package's ClientApp: also has the node's data, the training options and the training job."""

    def __init__(self, message: Message, context: Context) -> None:
        self.workload = load_workload(context.run_config)
        self.has_own_data = NODE_DATA in context.node_config  # data from a folder, not a part of ``data.name``
        partition = reading.read_value(reading.read_config(message), messages.PARTITION, int)
        self.architecture = self.workload.architecture(partition)
        super().__init__(message, context, self.workload.builds[self.architecture], seed_torch=True)

    @property
    def options(self) -> TrainOptions:
        """Training options from the settings and the message, without ``proximal``, which is in ``training_job``."""
        return replace(
            self.workload.settings.train,
            learning_rate=reading.read_value(self.config, messages.LEARNING_RATE, float),
            proximal=0.0,
            augment=self.workload.facts.augment,
        )

    @cached_property
    def data(self) -> NodeData:
        """The node's examples and classes."""
        return load_node_data(self.context, self.workload)

    def models(self) -> Iterator[tuple[float, nn.Module]]:
        """Yield pairs (rate, model) for the rates in the message, in a run without personal parameters.

        Clients with equal messages may get the same model objects.
        """
        for rate, model in _LAST_MODELS.of(self):
            seed_torch(self.seed)
            yield rate, model

    def build_models(self) -> list[tuple[float, nn.Module]]:
        """Return pairs (rate, new model) for the rates in the message."""
        return [(rate, model.to(self.workload.device)) for rate, model in super().models()]

    def load_model(self) -> nn.Module:
        """Return ``Task.model()`` on the workload's device."""
        return self.model().to(self.workload.device)

    def training_job(self, model: nn.Module) -> TrainingJob:
        """Return the job of training ``model`` on this client's data, with the penalties of FedProx and the stages."""
        data = self.data
        self.penalty_used = True  # the engines add the penalties of the job
        quadratic, terms = self._stages.penalty.quadratic, self._stages.penalty.terms
        if quadratic and not quadratic.covers(model):
            terms, quadratic = (*terms, quadratic), None
        return TrainingJob(
            model=self.workload.with_inner_widths(model, self.rate, self.build),
            quadratic=None if quadratic is None else quadratic.aligned(model),
            penalty=partial(Penalty(terms=terms), model) if terms else None,
            split=data.train,
            seed=self.seed,
            classes=torch.tensor(data.classes) if self.workload.masked else None,
            step_share=self.work,
            joint_loss=self.workload.joint_loss(self.instruction.server_round),
        )

    def note_steps(self, steps: int) -> None:
        """Set ``total_step`` after ``steps`` steps of local training with SGD.

        ``total_step`` is the distance that a parameter moves in these steps if its gradient is always 1.
        """
        options, length = self.options, float(steps)
        if beta := options.momentum:
            length = (steps - beta * (1 - beta**steps) / (1 - beta)) / (1 - beta)
        self.total_step = options.learning_rate * length

    def with_own_moments(self, model: nn.Module) -> nn.Module:
        """Let batch norm in the personal ``model`` use moments of ``trained_batches``, in place; return the model."""
        if not batch_norms(model):
            return model
        kind = self.workload.settings.fidelity
        moments = collect_moments(model, self.trained_batches(), kind, together=self.workload.moments_together)
        return set_static_norm(model, moments)

    def trained_batches(self) -> Iterable[Tensor]:
        """Return batches of the personal model's training inputs. With FedH2L, they include the shared examples."""
        workload = self.workload
        batches = workload.moments_batches(self.data.train, self.seed)
        if workload.settings.server.strategy != "fedh2l":
            return batches
        return chain(batches, workload.moments_batches(workload.seeds, self.seed))


class _LastModels:
    """Cache of the latest evaluation's models, used again if a client's message has the same parameters."""

    def __init__(self) -> None:
        self._key: object = None
        self._models: list[tuple[float, nn.Module]] = []

    def of(self, task: AppTask) -> list[tuple[float, nn.Module]]:
        instruction = task.instruction
        fields = (instruction.kind, instruction.rates, instruction.slice_rule, instruction.window)
        records = reading.array_records(task.message.content)
        contents = {name: dict(record) for name, record in records.items()}
        key = (task.workload, task.architecture, fields, instruction.frozen_base, contents)
        if key != self._key:
            self._key, self._models = None, []  # free the memory before building the next models
            self._key, self._models = key, task.build_models()
        return self._models

    def clear(self) -> None:
        self._key, self._models = None, []


_LAST_MODELS = _LastModels()
release_models = _LAST_MODELS.clear


def load_node_data(context: Context, workload: Workload) -> NodeData:
    """Return the data in the folder that the node config names (``data-path``); without it, part of ``data.name``."""
    if NODE_DATA in context.node_config:
        return _load_own_data(str(context.node_config[NODE_DATA]), workload)
    node = read_capability(context)
    partition, number = node.get(messages.PARTITION), node.get(messages.NUM_PARTITIONS)
    if not isinstance(partition, int) or not isinstance(number, int):
        raise ConfigError(
            f"this node does not know its data: its node config has {', '.join(context.node_config) or 'nothing'}; "
            f"expected partition-id and num-partitions, such as --node-config 'partition-id=0 num-partitions=10', for "
            f"a part of data.name, or data-path, such as --node-config 'data-path=\"/path/to/folder\"', for its own"
        )
    return workload.part(partition, number)


@lru_cache(maxsize=2)
def _load_own_data(path: str, workload: Workload) -> NodeData:
    data = align(load_dataset(path, label=workload.settings.data.label), workload.terms)
    return NodeData(
        lambda: data.train.to(workload.device),
        lambda: data.test.to(workload.device),
        tuple(data.train.targets.unique().tolist()),
    )
