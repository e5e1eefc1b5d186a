"""What an example costs in a run's models, and how many there are; the paper's data sets need not be there for it."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache

import torch

from heterofl_flwr.app.workload import Workload, load_data
from heterofl_flwr.core.levels import Mix
from heterofl_flwr.data.known import Facts, short_name
from heterofl_flwr.data.splits import by_owner, owner_column
from heterofl_flwr.nn import PAPER
from heterofl_flwr.nn.profile import Profile, profile
from heterofl_flwr.settings.definitions import DataSettings, Settings
from heterofl_flwr.settings.flat import from_flat, to_flat

PIECE = 64
"""Words of a text that go through the model together; a piece is to a text what an image is to other data."""

SIZES: Mapping[str, tuple[int, int]] = {
    "mnist": (60_000, 10_000),
    "cifar10": (50_000, 10_000),
    "wikitext2": (100 * math.ceil(20_886 / PIECE), 10 * math.ceil(24_556 / PIECE)),
}
"""Examples, or pieces, of train and test."""


@lru_cache(maxsize=8)
def sizes_of(data: DataSettings, clients: int) -> tuple[int, int]:
    """Return the sizes of train and test that clients share; other data than the paper's are loaded for it."""
    if (short := short_name(data.name)) in SIZES:
        return SIZES[short]
    dataset = load_data(data)
    splits = (dataset.train, dataset.test)
    numbers: Sequence[int] = [len(own) for own in splits]
    if owner_column(data.split) is not None:  # what belongs to other owners takes no part
        numbers = [sum(map(len, rows)) for rows in by_owner(dataset, clients)]
    train, test = (
        number * (math.ceil(own.inputs.shape[1] / PIECE) if own.reading else 1)
        for number, own in zip(numbers, splits, strict=True)
    )
    return train, test


class _Task(Workload):
    """A data set and a model; the paper's data sets need not be there."""

    @cached_property
    def facts(self) -> Facts:
        """What the model's shape follows from."""
        setup = PAPER.get(short_name(self.settings.data.name))
        words = setup.options.get("vocabulary") if setup else None
        return Facts((PIECE,), int(str(words))) if words else super().facts

    def example(self) -> torch.Tensor:
        """Return a batch of one input, all zeros."""
        setup = PAPER.get(short_name(self.settings.data.name))
        return setup.example() if setup else torch.zeros_like(super().example())


def values_of(settings: Settings) -> int:
    """Return of how many values an example consists."""
    return _Task(settings).example().numel()


@lru_cache(maxsize=1024)  # as _profile is, whose key takes longer to find than what results do with it
def profile_at(settings: Settings, rate: float) -> Profile:
    """Return what one example costs in a rate's model."""
    return _profile(_model_at(settings, rate))


def _model_at(settings: Settings, rate: float) -> Settings:
    """Return settings that describe a rate's model, and nothing else: the key under which its cost is cached."""
    flat = to_flat(settings)
    own = {key: value for key, value in flat.items() if key.startswith(("data.", "model."))}
    if owner_column(settings.data.split) is None:  # else it says which column is no input
        del own["data.split"]
    return from_flat({**own, "mix": str(Mix((rate,), (1,)))})


@lru_cache(maxsize=1024)
def _profile(model: Settings) -> Profile:
    workload = _Task(model)
    build, example = workload.build, workload.example()  # a user's module and data have values, so not on "meta"
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        module = build(model.mix.global_rate)
    return profile(module, example)
