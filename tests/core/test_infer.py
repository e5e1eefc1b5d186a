"""Rows that were trained are told from those that only shrank."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from heterofl_flwr.core import Plan
from heterofl_flwr.core.compression import compress, restore
from heterofl_flwr.core.noise import clipped
from heterofl_flwr.core.replies import norm_between, trained_rows
from heterofl_flwr.nn.loss import class_mask, masked_cross_entropy

CLASSES = 6


def train(own, *, columns=4, steps=10, seed=0, fill="zero", **options):
    """Return a linear classifier before and after masked steps on examples of some classes."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Linear(columns, CLASSES)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, **options})
    mask = class_mask(torch.tensor(own), CLASSES)
    for _ in range(steps):
        inputs = torch.randn(8, columns, generator=generator)
        targets = torch.tensor(own)[torch.randint(len(own), (8,), generator=generator)]
        optimizer.zero_grad()
        masked_cross_entropy(model(inputs), targets, mask, fill).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return before, {name: parameter.detach() for name, parameter in model.named_parameters()}


@settings(max_examples=40)
@given(
    own=st.sets(st.integers(0, CLASSES - 1), min_size=2).map(sorted),
    columns=st.sampled_from([4, 32]),
    steps=st.sampled_from([1, 5, 30]),
    weight_decay=st.sampled_from([0.0, 5e-4, 0.1]),
    momentum=st.sampled_from([0.0, 0.9]),
    fill=st.sampled_from(["zero", "-inf"]),
    seed=st.integers(0, 99),
)
def test_the_rows_of_a_masked_loss_are_those_of_its_classes(own, columns, steps, weight_decay, momentum, fill, seed):
    before, after = train(
        own, columns=columns, steps=steps, seed=seed, fill=fill, weight_decay=weight_decay, momentum=momentum
    )
    assert trained_rows(before, after, CLASSES) == own


@pytest.mark.parametrize("upload", ["float16", "int8"])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_they_are_found_in_few_bits_too(upload, weight_decay):
    before, after = train([1, 4], columns=64, weight_decay=weight_decay)
    found = restore(Plan.between(before, before), before, compress(before, after, upload, seed=0))
    assert trained_rows(before, found, CLASSES) == [1, 4]


def test_without_a_mask_all_rows_are_trained():
    before, after = train(list(range(CLASSES)))
    assert trained_rows(before, after, CLASSES) == list(range(CLASSES))


def test_nothing_is_trained_where_nothing_changed():
    before, _ = train([0, 1])
    assert trained_rows(before, before, CLASSES) == []


def test_a_row_of_zeros_that_stays_is_not_trained():
    before = {"w": torch.zeros(2, 3)}
    assert trained_rows(before, {"w": torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])}, 2) == [1]


def test_rows_beyond_the_classes_do_not_count():
    before = {"w": torch.ones(3, 2)}
    assert trained_rows(before, {"w": torch.tensor([[1.0, 1.0], [1.0, 2.0], [5.0, 1.0]])}, 2) == [1]


@pytest.mark.parametrize("clip", [0.01, 0.2])
def test_rows_of_a_change_that_its_client_shortened_are_told_apart(clip):
    before, after = train([1, 4], weight_decay=0.1)
    short = clipped(before, after, clip)
    assert norm_between(short, before) == pytest.approx(clip, rel=1e-4)
    assert trained_rows(before, short, CLASSES) == [1, 4]
