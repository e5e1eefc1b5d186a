"""Data sets for control experiments of FedH2L: only its labelled seed set, and clients of different domains."""

from dataclasses import replace

import torch

from heterofl_flwr.data import Dataset, Split, load_dataset
from heterofl_flwr.training.fedh2l import seed_set

SEEDS = {"digits": 200, "mnist": 1000}
"""Number of examples in the seed set of FedH2L, by data set."""

DOMAINS, DEGREES = 6, 15.0


def digits_seeds() -> Dataset:
    """Return the 200 digits of FedH2L's seed set (random seed 0), for training without peers."""
    return _seeds("digits")


def mnist_seeds() -> Dataset:
    """Return the 1,000 MNIST images of FedH2L's seed set (random seed 0), for training without peers."""
    return _seeds("mnist")


def _seeds(name: str) -> Dataset:
    whole = load_dataset(name)
    rows = seed_set(whole.train, SEEDS[name], whole.classes, seed=0)
    return replace(whole, name=f"{name}-seeds", train=whole.train.select(rows))


def turned_digits() -> Dataset:
    """Return the digits divided among six owners, rotated by 0, 15, ... 75 degrees, for the split ``natural``."""
    whole = load_dataset("digits")
    owners = torch.arange(len(whole.train)) % DOMAINS, torch.arange(len(whole.test)) % DOMAINS
    train, test = map(_turned, (whole.train, whole.test), owners)
    return replace(whole, name="turned-digits", train=train, test=test, owners=owners)


def _turned(split: Split, owners: torch.Tensor) -> Split:
    # Imported here, because tables need the sizes of these data sets alone.
    from torchvision.transforms.v2 import InterpolationMode, functional  # type: ignore[import-untyped]

    inputs = split.inputs.clone()
    fill = [0.0] * inputs.shape[1] if split.black is None else split.black.tolist()
    for owner in range(DOMAINS):
        own = owners == owner
        inputs[own] = functional.rotate(inputs[own], owner * DEGREES, InterpolationMode.BILINEAR, fill=fill)
    return replace(split, inputs=inputs)
