"""Batches of rows and of inputs."""

import pytest
import torch

from heterofl_flwr.data import Split
from heterofl_flwr.training import input_batches
from heterofl_flwr.training.batches import batch_rows

NUMBERS = Split(torch.arange(11.0)[:, None], torch.zeros(11, dtype=torch.int64))


@pytest.mark.parametrize(
    ("number", "batch_size", "sizes"),
    [(10, 5, [5, 5]), (11, 5, [5, 6]), (12, 5, [5, 5, 2]), (1, 5, [1]), (3, 1, [1, 1, 1]), (3, 2, [3]), (4, 9, [4])],
)
def test_rows_are_cut_in_order_and_none_is_left_alone(number, batch_size, sizes):
    pieces = batch_rows(torch.arange(number), batch_size)
    assert [len(piece) for piece in pieces] == sizes
    assert torch.cat(list(pieces)).tolist() == list(range(number))


def test_inputs_come_in_order_or_shuffled_by_a_seed():
    def flat(seed):
        return torch.cat(list(input_batches(NUMBERS, 5, seed=seed))).flatten().tolist()

    assert flat(None) == list(range(11))
    assert flat(1) == flat(1)
    assert flat(1) != flat(2)
    assert sorted(flat(1)) == sorted(flat(0)) == list(range(11))
    assert [len(batch) for batch in input_batches(NUMBERS, 5, seed=1)] == [5, 6]
    assert [len(batch) for batch in input_batches(NUMBERS, 5000)] == [11]


def test_inputs_may_be_varied():
    split = Split(torch.ones(6, 1, 8, 8), torch.zeros(6, dtype=torch.int64), torch.tensor([-2.0]))
    batch = next(input_batches(split, 6, seed=1, augment="crop-flip"))
    assert set(batch.unique().tolist()) == {-2.0, 1.0}


def test_an_empty_split_has_no_batches():
    assert list(input_batches(NUMBERS.select(torch.tensor([], dtype=torch.int64)), 5)) == []
