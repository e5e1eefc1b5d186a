"""Data sets of FedH2L's controls: its labelled seed set alone, and clients of different domains."""

from dataclasses import replace

import torch
from torchvision.transforms.v2 import InterpolationMode, functional  # type: ignore[import-untyped]

from heterofl_flwr.data import Dataset, Split, load_dataset
from heterofl_flwr.training.distill import seed_set

DOMAINS, DEGREES = 6, 15.0


def digits_seeds() -> Dataset:
    """Return 200 digits, as runs of FedH2L on digits share them with seed 0: what a client learns without peers."""
    return _seeds("digits", 200)


def mnist_seeds() -> Dataset:
    """Return 1,000 images of MNIST, likewise."""
    return _seeds("mnist", 1000)


def _seeds(name: str, number: int) -> Dataset:
    whole = load_dataset(name)
    rows = seed_set(whole.train, number, whole.classes, seed=0)
    return replace(whole, name=f"{name}-seeds", train=whole.train.select(rows))


def turned_digits() -> Dataset:
    """Return the digits of six owners, whose images are turned by 0, 15, ... 75 degrees: for the split ``natural``."""
    whole = load_dataset("digits")
    train, test = (_turned(split) for split in (whole.train, whole.test))
    owners = _owners(whole.train), _owners(whole.test)
    return replace(whole, name="turned-digits", train=train, test=test, owners=owners)


def _owners(split: Split) -> torch.Tensor:
    return torch.arange(len(split)) % DOMAINS


def _turned(split: Split) -> Split:
    inputs, owners = split.inputs.clone(), _owners(split)
    fill = [0.0] * inputs.shape[1] if split.black is None else split.black.tolist()
    for owner in range(DOMAINS):
        own = owners == owner
        inputs[own] = functional.rotate(inputs[own], owner * DEGREES, InterpolationMode.BILINEAR, fill=fill)
    return replace(split, inputs=inputs)
