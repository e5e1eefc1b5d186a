"""The data set that comes with scikit-learn, for quick starts and tests."""

import torch

from heterofl_flwr.data.dataset import Dataset
from heterofl_flwr.data.raw import Raw, to_dataset

TEST_EVERY = 5
"""Of each class, every fifth example is for testing."""


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits, 1,797 images of 8x8 pixels, a fifth of each class for testing."""
    from sklearn.datasets import load_digits  # takes a second to load

    bundle = load_digits()
    images = torch.from_numpy(bundle.images)[:, None] / 16  # (number, 1, 8, 8), in 0 to 1
    labels = torch.from_numpy(bundle.target)
    rank = torch.zeros_like(labels)  # the how manieth of its class
    for name in labels.unique():
        mine = labels == name
        rank[mine] = torch.arange(int(mine.sum()))
    test = rank % TEST_EVERY == TEST_EVERY - 1
    train_raw, test_raw = (
        Raw(images[part].float(), labels[part].tolist(), tuple("0123456789"), "digits") for part in (~test, test)
    )
    return to_dataset("digits", train_raw, test_raw)
