"""Small MNIST with 14 x 14 pixels and 10,000 training images, for experiments that take about a minute.

Tune hyperparameters with ``load``, and report results with ``with_test_images``.
"""

import torch
from torch.nn import functional as F

from heterofl_flwr.data import Dataset, Split, load_dataset

TRAIN, HELD_OUT = 10_000, 5_000


def load() -> Dataset:
    """Return 10,000 images for training and 5,000 for tests, all from MNIST's training set."""
    mnist = load_dataset("mnist").train
    drawn = _drawn(mnist)
    train, test = (_part(mnist, rows) for rows in drawn[: TRAIN + HELD_OUT].split([TRAIN, HELD_OUT]))
    return Dataset("small-mnist", train, test, classes=10)


def with_test_images() -> Dataset:
    """Return the training images of ``load``, and MNIST's test set for tests."""
    mnist = load_dataset("mnist")
    train = _part(mnist.train, _drawn(mnist.train)[:TRAIN])
    return Dataset("small-mnist-tested", train, _part(mnist.test, torch.arange(len(mnist.test))), classes=10)


def _drawn(split: Split) -> torch.Tensor:
    return torch.randperm(len(split), generator=torch.Generator().manual_seed(0))


def _part(split: Split, rows: torch.Tensor) -> Split:
    return Split(F.avg_pool2d(split.inputs[rows], 2), split.targets[rows])
