"""Splits and data sets, and what they refuse."""

import pytest
import torch

from heterofl_flwr.data import Dataset, Split
from heterofl_flwr.errors import DataError


def split(number: int = 4, classes: int = 2, shape: tuple[int, ...] = (3,)) -> Split:
    return Split(torch.zeros(number, *shape), torch.arange(number) % classes)


def test_a_split_has_a_length_and_gives_rows_as_copies():
    whole = Split(torch.arange(4.0)[:, None], torch.tensor([3, 2, 1, 0]), torch.tensor([-1.0]))
    part = whole.select(torch.tensor([2, 0]))
    assert (len(whole), len(part)) == (4, 2)
    assert part.inputs.flatten().tolist() == [2, 0]
    assert part.targets.tolist() == [1, 3]
    assert part.black is whole.black
    part.inputs.fill_(9)
    assert whole.inputs.flatten().tolist() == [0, 1, 2, 3]


NO_CLASS = r"targets of the train split .* expected class numbers from 0 to 1"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (split(), split(0), "mine: the test split is empty"),
        (Split(torch.zeros(1, 3), torch.tensor([2])), split(), NO_CLASS),
        (split(), split(shape=(4,)), r"train split has shape \(3,\), one of the test split \(4,\)"),
    ],
)
def test_splits_that_are_no_data_set_raise_an_error(train, test, message):
    with pytest.raises(DataError, match=message):
        Dataset("mine", train, test, 2)
