import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from heterofl_flwr.core.randomness import derive, generator

purposes = st.lists(st.one_of(st.integers(), st.text(alphabet="abc01/,'", max_size=4)), max_size=4)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((0,), 6197007067532723406), ((0, "level", 1, 2), 1360078716365476832), ((7, "a"), 2500183226267768312)],
)
def test_seeds_are_the_same_on_every_machine(arguments, expected):
    assert derive(*arguments) == expected


@given(seed=st.integers(), one=purposes, other=purposes)
def test_different_purposes_have_different_seeds(seed, one, other):
    assert (derive(seed, *one) == derive(seed, *other)) == (one == other)
    assert 0 <= derive(seed, *one) < 2**63


def test_a_number_and_its_digits_are_different_purposes():
    assert derive(0, 1) != derive(0, "1")
    assert derive(1, 2) != derive(12)
    assert derive(0, 1, 2) != derive(0, 2, 1)
    assert derive(0, "a", "b") != derive(0, "a/str:b")
    assert derive(0, np.int64(5)) == derive(0, 5)


def test_a_generator_starts_anew_each_time():
    assert generator(0, "x").random() == generator(0, "x").random() != generator(0, "y").random()


def test_no_global_random_state_is_touched():
    before = random.getstate(), torch.get_rng_state()
    generator(0, "x").choices(range(5), k=3)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
