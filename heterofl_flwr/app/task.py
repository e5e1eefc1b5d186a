"""What server and clients of our own app share: the data set, its parts, and the model at each rate.

A task is made once in each process and kept, so data and models survive the rounds of a simulation.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import nn

from heterofl_flwr.core.levels import Mix
from heterofl_flwr.data import Dataset, Partitions, Split, load_dataset, split_dataset
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.learn import TrainOptions, resolve_device
from heterofl_flwr.nn.models import MODELS, build_model
from heterofl_flwr.settings import Settings, from_flat, model_options
from heterofl_flwr.settings.model import takes

Flat = Mapping[str, Any]

COHORTS = {"cpu": 5, "cuda": 50}
"""How many clients train together by default, by type of device."""

AT_ONCE = {"cpu": 50, "cuda": 1000}
"""Examples that go through a model at once where moments are measured, by type of device."""


class Task:
    """A data set and a model, as the settings say."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._partitions: dict[int, Partitions] = {}

    @cached_property
    def dataset(self) -> Dataset:
        """The data set, loaded when it is first needed."""
        return load_dataset(self.settings.data.name, self.settings.data.root or None)

    @cached_property
    def device(self) -> torch.device:
        """Where clients compute."""
        return resolve_device(self.settings.engine.device)

    @cached_property
    def train(self) -> Split:
        """The training examples, moved to the device once."""
        return self.dataset.train.to(self.device)

    @cached_property
    def test(self) -> Split:
        """The test examples, moved to the device once."""
        return self.dataset.test.to(self.device)

    @cached_property
    def build(self) -> Callable[[float], nn.Module]:
        """From a rate to the model at that rate."""
        model = self.settings.model.name
        if ":" in model:
            return load_function(model, "model.name")
        options = model_options(self.settings)
        inputs = self.dataset.train.inputs
        depends = {
            "channels": inputs.shape[1] if inputs.dim() == 4 else 1,
            "classes": self.dataset.classes,
            "vocabulary": self.dataset.classes,
        }
        options |= {name: value for name, value in depends.items() if takes(model, name)}
        return build_model(model, **options)

    @property
    def mix(self) -> Mix:
        """The rates of the clients."""
        return self.settings.mix

    @property
    def masked(self) -> bool:
        """Whether the loss leaves out the classes that a client lacks."""
        return self.settings.train.mask_fill != "none"

    @property
    def counts_labels(self) -> bool:
        """Whether classifier rows count by label (``fidelity.label-rows``)."""
        return self.masked or self.settings.fidelity.label_rows == "paper"

    @property
    def cohort(self) -> int:
        """How many clients may train together."""
        engine = self.settings.engine
        return (engine.cohort or COHORTS.get(self.device.type, 1)) if engine.name in ("auto", "cohort") else 1

    @property
    def moments_batch_size(self) -> int:
        """Samples in a batch whose moments are measured."""
        settings = self.settings
        paper = settings.train.batch_size if settings.fidelity.moments == "paper" else 100
        return settings.evaluate.moments_batch_size or paper

    @property
    def moments_together(self) -> int:
        """How many such batches go through the model in one pass; a user's may mix the examples of a batch."""
        ours = self.settings.model.name in MODELS
        return max(AT_ONCE.get(self.device.type, 1) // self.moments_batch_size, 1) if ours else 1

    def example(self) -> torch.Tensor:
        """Return a batch of one input."""
        train = self.dataset.train
        return train.inputs[:1] if train.reading is None else train.inputs[:1, : train.reading.length]

    def partitions(self, number: int) -> Partitions:
        """Return how the data are dealt to so many clients."""
        if number not in self._partitions:
            settings = self.settings
            self._partitions[number] = split_dataset(
                self.dataset, settings.data.split, number, settings.seed, settings.fidelity.shards
            )
        return self._partitions[number]

    def part(self, partition: int, num_partitions: int) -> tuple[Split, Split, tuple[int, ...]]:
        """Return a client's training and test examples, on the device, and its classes."""
        parts = self.partitions(num_partitions)
        if not 0 <= partition < num_partitions:
            raise ConfigError(f"partition-id is {partition}; expected 0 to {num_partitions - 1}, num-partitions less 1")
        return *parts.of(partition, self.train, self.test), parts.classes[partition]

    def options(self, learning_rate: float) -> TrainOptions:
        """Return how a client trains."""
        train = self.settings.train
        return TrainOptions(
            learning_rate=learning_rate,
            epochs=train.epochs,
            batch_size=train.batch_size,
            momentum=train.momentum,
            weight_decay=train.weight_decay,
            clip=train.clip,
            proximal=train.proximal,
            mask_fill=train.mask_fill,
            augment=self.dataset.augment,
            precision=train.precision,
        )


def task_of(run_config: Flat) -> Task:
    """Return the task of a run; the same one for equal settings."""
    return _task(tuple(sorted(run_config.items())))


@lru_cache(maxsize=4)
def _task(items: tuple[tuple[str, Any], ...]) -> Task:
    return Task(from_flat(dict(items)))


def load_function(reference: str, key: str) -> Callable[..., Any]:
    """Return what a setting names as ``module:function``."""
    module, _, name = reference.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{key} is {reference!r}, which cannot be loaded ({error}): name a function as 'module:function' and put "
            f"its folder on PYTHONPATH"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key} is {reference!r}, which is {type(found).__name__}; expected a function")
    return found  # type: ignore[no-any-return]
