"""The data set that comes with scikit-learn, for quick starts and tests."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from heterofl_flwr.data.dataset import Dataset
from heterofl_flwr.data.raw import Raw, to_dataset
from heterofl_flwr.errors import DataError

FILE = Path("datasets", "data", "digits.csv.gz")

TEST_EVERY = 5
"""Of each class, every fifth example is for testing."""


def digits() -> Dataset:
    """Return scikit-learn's handwritten digits, 1,797 images of 8x8 pixels, a fifth of each class for testing."""
    # Not load_digits(), which does the same: scikit-learn takes more than a second to load, in each process.
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        raise DataError(
            "the data set digits is a file of scikit-learn, which is not installed: pip install scikit-learn"
        )
    rows = torch.from_numpy(np.loadtxt(Path(found.origin).parent / FILE, delimiter=","))  # (number, 64 + 1)
    images = rows[:, :-1].reshape(-1, 1, 8, 8) / 16  # (number, 1, 8, 8), in 0 to 1
    labels = rows[:, -1].long()
    rank = torch.zeros_like(labels)  # the how manieth of its class
    for name in labels.unique():
        mine = labels == name
        rank[mine] = torch.arange(int(mine.sum()))
    test = rank % TEST_EVERY == TEST_EVERY - 1
    train_raw, test_raw = (
        Raw(images[part].float(), labels[part].tolist(), tuple("0123456789"), "digits") for part in (~test, test)
    )
    return to_dataset("digits", train_raw, test_raw)
