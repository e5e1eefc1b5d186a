"""Seeds by purpose; global generators that are restored. ``tests/client`` tests who restores them."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core.randomness import derive, generator, initial_state, kept_random_state, seed_torch


def test_a_seed_counts_until_the_end_even_of_one_that_fails():
    drawn = []

    @kept_random_state(7)
    def fails():
        drawn.append((random.random(), np.random.random(), torch.rand(3).tolist()))  # noqa: NPY002
        raise RuntimeError

    before = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            fails()
    assert drawn[0] == drawn[1]
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("started", "expected"), [(True, [7]), (False, [])])
def test_cuda_is_seeded_only_where_it_can_be_given_back(monkeypatch, started, expected):
    """A seed for CUDA that has not started waits for its start, after the state was given back."""
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    with kept_random_state(7):
        pass
    assert seeds == expected


purposes = st.lists(st.one_of(st.integers(), st.text(alphabet="abc01/,'", max_size=4)), max_size=4)


def test_seeds_are_the_same_on_every_machine():
    assert derive(0) == 6197007067532723406
    assert derive(0, "level", 1, 2) == 1360078716365476832
    assert derive(0, np.int64(5)) == derive(0, 5)


@given(seed=st.integers(), one=purposes, other=purposes)
def test_different_purposes_have_different_seeds(seed, one, other):
    assert (derive(seed, *one) == derive(seed, *other)) == (one == other)
    assert 0 <= derive(seed, *one) < 2**63


def test_an_initial_state_depends_on_its_seed_alone():
    before = random.getstate(), torch.get_rng_state()
    generator(0, "x").choices(range(5), k=3)
    one, again, other = (initial_state(lambda rate: torch.nn.Linear(int(4 * rate), 2), 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(one["weight"], again["weight"])
    assert not torch.equal(one["weight"], other["weight"])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_a_model_without_values_is_no_initial_state():
    with pytest.raises(ConfigError, match=r"build\(0.5\) returns bias, weight on the meta device"):
        initial_state(lambda rate: torch.nn.Linear(2, 3, device="meta"), 0.5, 0)


@pytest.mark.parametrize("device", [False, True])
@kept_random_state()
def test_draws_after_seeding_are_those_of_torchs_own_seed(device, monkeypatch):
    torch.manual_seed(11)
    expected = torch.rand(3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device)
    seed_torch(11)
    assert torch.equal(torch.rand(3), expected)
