"""A small data set on which recipes are tuned: MNIST at 14 x 14, cut from the training images alone.

No image of MNIST's test set is in it, so what is reported on the test set was not tuned on it.
"""

import torch
from torch.nn import functional as F

from heterofl_flwr.data import Dataset, Split, load_dataset

TRAIN, HELD_OUT = 10_000, 5_000


def load() -> Dataset:
    """Return 10,000 training images, and 5,000 others of the training images to evaluate on."""
    mnist = load_dataset("mnist").train
    drawn = torch.randperm(len(mnist), generator=torch.Generator().manual_seed(0))
    train, held_out = (
        Split(F.avg_pool2d(mnist.inputs[rows], 2), mnist.targets[rows])
        for rows in (drawn[:TRAIN], drawn[TRAIN : TRAIN + HELD_OUT])
    )
    return Dataset("small-mnist", train, held_out, classes=10)
