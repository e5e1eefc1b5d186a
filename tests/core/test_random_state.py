"""The global generators, borrowed and given back; ``tests/client`` tests who does so."""

import pytest
import torch

from heterofl_flwr.core.randomness import kept_random_state


def test_a_seed_counts_until_the_end_even_of_one_that_fails():
    drawn = []

    @kept_random_state(7)
    def fails():
        drawn.append(torch.rand(3))
        raise RuntimeError

    before = torch.get_rng_state()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            fails()
    assert torch.equal(*drawn)
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
