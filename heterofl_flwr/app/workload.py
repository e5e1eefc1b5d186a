"""``Workload``: data set, partitions and models of a run of this package's app."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cache, cached_property, lru_cache, partial
from typing import Any

import torch
from torch import nn

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.common.user_code import load_function
from heterofl_flwr.core.exchanged import ALL
from heterofl_flwr.core.randomness import derive
from heterofl_flwr.data import Dataset, Partitions, Split, load_dataset, split_dataset
from heterofl_flwr.data.align import Terms
from heterofl_flwr.data.known import Facts
from heterofl_flwr.data.load import shared_dataset
from heterofl_flwr.data.splits import owner_column
from heterofl_flwr.nn.depth import Rates, read_levels, shallow
from heterofl_flwr.nn.exits import BLOCKS, with_exits
from heterofl_flwr.nn.inner_widths import Nested
from heterofl_flwr.nn.models import MODELS, Build, build_model
from heterofl_flwr.runs.class_counts import Matrix, count_pairs
from heterofl_flwr.settings.auto_values import model_options, options_of, with_architecture
from heterofl_flwr.settings.definitions import DataSettings, Settings
from heterofl_flwr.settings.server_stages import parse_stages
from heterofl_flwr.settings.validate import from_flat
from heterofl_flwr.training import EvaluateResult, evaluate, input_batches, resolve_device
from heterofl_flwr.training.batches import batch_rows
from heterofl_flwr.training.device import arithmetic
from heterofl_flwr.training.exit_losses import EXIT_LOSSES, ramp_up
from heterofl_flwr.training.fedh2l import seed_set
from heterofl_flwr.training.inplace_distillation import nested_loss
from heterofl_flwr.training.options import JointLoss

COHORTS = {"cpu": 5, "cuda": 50}
"""Default maximum number of clients that train together, by device type."""

AT_ONCE = {"cpu": 50, "cuda": 1000}
"""Maximum number of examples in a forward pass that measures moments, by device type. A single batch may have more."""


class NodeData:
    """A node's training and test examples, loaded on first use, and its classes."""

    def __init__(self, train: Callable[[], Split], test: Callable[[], Split], classes: tuple[int, ...]) -> None:
        self._gather_train, self._gather_test, self.classes = train, test, classes

    @cached_property
    def train(self) -> Split:
        """The training examples, on the clients' device."""
        return self._gather_train()

    @cached_property
    def test(self) -> Split:
        """The test examples, on the clients' device."""
        return self._gather_test()


class Workload:
    """Data set, models and training of a run, as the settings describe them."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.mix = settings, settings.mix
        self.partitions, self.whole_test = cache(self._deal), cache(self._join_tests)

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, loaded on first use."""
        return load_data(self.settings.data)

    @cached_property
    def facts(self) -> Facts:
        """Input shape, number of classes and augmentation of the data set."""
        return Facts.find(self.settings.data.name, self.settings.data.label) or Facts.of(self.dataset)

    @cached_property
    def terms(self) -> Terms:
        """Column names, class names and normalisation, to which a node's own data are aligned."""
        name, label = self.settings.data.name, self.settings.data.label
        facts = Facts.find(name, label)
        return Terms.of(self.dataset) if facts is None or name == "digits" else Terms.of_source(name, facts)

    @cached_property
    def device(self) -> torch.device:
        """Device on which clients compute."""
        return resolve_device(self.settings.engine.device)

    def arithmetic(self, *, training: bool = False) -> AbstractContextManager[None]:
        """Return a context manager for ``engine.precision``; outside training, bf16 becomes tf32."""
        precision = self.settings.engine.precision
        return arithmetic("tf32" if precision == "bf16" and not training else precision, self.device)

    @cached_property
    def train(self) -> Split:
        """The training examples, moved to the device once."""
        return self.dataset.train.to(self.device)

    @cached_property
    def test(self) -> Split:
        """The test examples, moved to the device once."""
        return self.dataset.test.to(self.device)

    @cached_property
    def build(self) -> Build:
        """Function from a rate to a new model."""
        model = self.settings.model.name
        if ":" in model:
            return load_function(model, "model.name")
        facts = self.facts
        channels = facts.shape[0] if len(facts.shape) == 3 else 1
        depends = {"channels": channels, "inputs": facts.shape, "classes": facts.classes, "vocabulary": facts.classes}
        return self._with_depth(build_model(model, **model_options(self.settings), **options_of(model, depends)))

    @cached_property
    def metric(self) -> Callable[..., Mapping[str, float]] | None:
        """User's function from a model, inputs and targets to further metrics; None if ``evaluate.metric`` is empty."""
        name = self.settings.evaluate.metric
        return load_function(name, "evaluate.metric") if name else None

    def _with_depth(self, build: Build) -> Build:
        model, train = self.settings.model, self.settings.train
        levels = read_levels(model.shrink)
        if levels is None:
            return build
        if BLOCKS[model.name] == "exits.*":
            # Inner widths are shallower models here, and each has its own exit.
            only_deepest = train.exits == "last" and train.distill == "none"
            build = with_exits(build, ensemble=model.ensemble, deepest_only=only_deepest)
        within: dict[str | float, Rates] = {rate: pair for rate, pair in levels.items() if rate <= self.mix.global_rate}
        return shallow(build, BLOCKS[model.name], None, levels=within)

    @cached_property
    def builds(self) -> Mapping[str, Build]:
        """Build functions by architecture. Only FedH2L has several."""
        names = self.settings.distill.models
        builds = {name: Workload(with_architecture(self.settings, name)).build for name in names}
        return builds or {self.settings.model.name: self.build}

    def architecture(self, partition: int) -> str:
        """Return the architecture of the client with this partition."""
        return list(self.builds)[partition % len(self.builds)]

    @property
    def personal(self) -> bool:
        """Whether clients have personal parameters, which they do not send."""
        return self.settings.server.shared != ALL or self.settings.server.strategy == "fedh2l"

    @property
    def masked(self) -> bool:
        """Whether the loss masks the logits of classes that a client lacks."""
        return self.settings.train.mask_fill != "none"

    @property
    def counts_labels(self) -> bool:
        """Whether ``train.labels`` applies. If not, clients send no classes, and all classifier rows are averaged."""
        return self.masked or self.settings.fidelity == "paper"

    @property
    def sends_labels(self) -> bool:
        """Whether clients tell the server which classes they have."""
        return self.counts_labels and self.settings.train.labels == "sent"

    @property
    def cohort(self) -> int:
        """Maximum number of clients that the engine trains together."""
        engine = self.settings.engine
        return 1 if engine.name == "plain" else engine.cohort or COHORTS.get(self.device.type, 1)

    @property
    def mixes_rates(self) -> bool:
        """Whether clients that train together may have different rates."""
        return self.settings.engine.name == "seats"

    def _deal(self, number: int) -> Partitions:
        settings = self.settings
        return split_dataset(self.dataset, settings.data.split, number, settings.seed, settings.fidelity)

    def count_classes(self, number: int) -> Matrix:
        """Return a matrix of the numbers of training examples of ``number`` clients (rows) by class (columns)."""
        rows = self.partitions(number).train
        clients = torch.arange(number).repeat_interleave(torch.tensor([len(part) for part in rows]))
        return count_pairs(clients, self.dataset.train.targets[torch.cat(rows)], (number, self.dataset.classes))

    def steps_each(self, number: int) -> float | None:
        """Return the mean number of training steps of one client in a round; None for text.

        ``number`` is the number of clients.
        """
        if self.dataset.train.reading is not None:
            return None
        train, parts = self.settings.train, self.partitions(number).train
        shared = self.settings.distill.steps if self.settings.server.strategy == "fedh2l" else 0  # on the seed batch
        return train.epochs * sum(len(batch_rows(rows, train.batch_size)) for rows in parts) / number + shared

    def part(self, partition: int, num_partitions: int) -> NodeData:
        """Return the data of client ``partition`` of ``num_partitions``."""
        parts = self.partitions(num_partitions)
        if not 0 <= partition < num_partitions:
            raise ConfigError(f"partition-id is {partition}; expected 0 to {num_partitions - 1}, num-partitions less 1")
        return NodeData(
            lambda: self.train.select(parts.train[partition]),
            lambda: self.test.select(parts.test[partition]),
            parts.classes[partition],
        )

    @cached_property
    def seeds(self) -> Split:
        """The seed set of FedH2L: examples that all clients share."""
        settings, train = self.settings, self.dataset.train
        rows = seed_set(train, settings.distill.seed_size, self.dataset.classes, settings.seed)
        return train.select(rows).to(self.device)

    def _join_tests(self, number: int) -> Split:
        if not number or not (parts := self.partitions(number)).partial:
            return self.test
        return self.dataset.test.select(torch.cat(parts.test).sort().values).to(self.device)

    def example(self) -> torch.Tensor:
        """Return a training input as a batch of size 1."""
        train = self.dataset.train
        example = train.inputs[:1].clone()  # a model may change its inputs in place
        return example if train.reading is None else example[:, : train.reading.length]

    def with_inner_widths(self, model: nn.Module, rate: float, build: Build) -> nn.Module:
        """Return ``model`` if ``train.distill`` is ``none``, else a ``Nested`` of ``model`` and smaller models.

        There is one smaller model, made by ``build``, for each rate of the mix below ``rate``.
        """
        widths = self.settings.train.distill
        smaller = (build(inner).to(self.device) for inner in self.mix.rates if inner < rate)
        return model if widths == "none" else Nested(model, [*smaller], widths)

    def joint_loss(self, server_round: int) -> JointLoss | None:
        """Return the joint loss of ``train.distill`` or ``train.exits``; None if both have their defaults."""
        kind, distill = self.settings.train.exits, self.settings.distill
        if self.settings.train.distill != "none":
            return partial(
                nested_loss, weight=distill.weight, temperature=distill.temperature, label_share=distill.label_share
            )
        if kind not in EXIT_LOSSES:
            return None
        weight = distill.weight * ramp_up(kind, server_round, distill.ramp * self.settings.num_rounds)
        return partial(EXIT_LOSSES[kind], weight=weight, temperature=distill.temperature)

    def evaluate_centrally(self, model: nn.Module, test: Split, server_round: int) -> EvaluateResult:
        """Return a model's metrics on ``test``, measured on the server."""
        settings = self.settings
        seed = derive(settings.seed, "central", server_round)
        with self.arithmetic():
            return evaluate(model, test, seed=seed, perplexity_kind=settings.fidelity)

    @property
    def moments_batch_size(self) -> int:
        """Batch size for measuring batch norm moments."""
        paper = self.settings.train.batch_size if self.settings.fidelity == "paper" else 100
        return self.settings.evaluate.moments_batch_size or paper

    @property
    def moments_together(self) -> int:
        """Number of batches in a forward pass that measures batch norm moments; 1 for users' models."""
        ours = all(name in MODELS for name in self.builds)
        return max(AT_ONCE.get(self.device.type, 1) // self.moments_batch_size, 1) if ours else 1

    def moments_batches(self, split: Split, seed: int) -> Iterator[torch.Tensor]:
        """Yield batches of inputs for measuring batch norm moments.

        The inputs are shuffled and augmented, except with ``fidelity=fixed``.
        """
        if self.settings.fidelity == "fixed":
            return input_batches(split, self.moments_batch_size)
        return input_batches(split, self.moments_batch_size, seed=seed, augment=self.facts.augment)


def load_data(data: DataSettings) -> Dataset:
    """Return the data set of a run."""
    return load_dataset(**_arguments(data))


def shared_data(data: DataSettings) -> AbstractContextManager[None]:
    """Context manager: processes started inside it share the memory of the data set."""
    return shared_dataset(**_arguments(data))


def _arguments(data: DataSettings) -> dict[str, Any]:
    return {"name": data.name, "root": data.root or None, "label": data.label, "owner": owner_column(data.split)}


def load_workload(run_config: Mapping[str, object]) -> Workload:
    """Return the workload of a run config, cached by its settings."""
    return _load_workload(tuple(sorted(run_config.items())))


@lru_cache(maxsize=4)
def _load_workload(items: tuple[tuple[str, object], ...]) -> Workload:
    settings = from_flat(dict(items))
    parse_stages(settings.server.stages)  # registers the client halves of users' own stages
    return Workload(settings)
