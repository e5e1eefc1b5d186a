"""A machine that measures itself: what it may hold and what it has time for, with memory and clocks made up."""

import logging
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from heterofl_flwr import elastic, shallow
from heterofl_flwr.core import LEVELS
from heterofl_flwr.errors import ConfigError, DataError
from heterofl_flwr.nn.models import PAPER
from heterofl_flwr.training import capacity
from heterofl_flwr.training.capacity import Trial, free_bytes, largest_rate
from simulations.bench.measure import peak_of

CPU = torch.device("cpu")
PLENTY = 2**40
RATES = list(LEVELS.values())


class Dense(nn.Module):
    """A layer of 64 units at rate 1, on 8 inputs."""

    def __init__(self, rate):
        super().__init__()
        self.layer = nn.Linear(8, int(64 * rate))

    def forward(self, x):
        return self.layer(x).relu()


@pytest.fixture
def trial():
    return Trial(Dense, torch.ones(10, 8), 5, CPU)


class Scripted(Trial):
    """A trial whose seconds a step are given by rate; it notes what was tried."""

    times = {0.0625: 1.0, 0.125: 2.0, 0.25: 4.0, 0.5: 16.0, 1.0: 64.0}  # noqa: RUF012
    tried = []  # noqa: RUF012

    def seconds(self, rate):
        self.tried.append(rate)
        if self.times[rate] is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.times[rate]


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(Scripted, "tried", [])
    return Scripted(Dense, torch.ones(10, 8), 5, CPU)


def test_the_largest_rate_fits_in_the_time_and_the_first_that_does_not_ends_the_search(scripted):
    for budget, rate in ((1000.0, 1.0), (320.0, 1.0), (319.9, 0.5), (80.0, 0.5), (5.0, 0.0625)):
        assert largest_rate(scripted, RATES, budget, PLENTY) == rate
    scripted.tried.clear()
    assert largest_rate(scripted, RATES, 21.0, PLENTY) == 0.25
    assert scripted.tried == [0.0625, 0.125, 0.25, 0.5]


def test_a_rate_that_memory_does_not_hold_is_never_tried(scripted):
    enough = math.ceil(scripted.memory(0.25) / capacity.FILL)
    assert largest_rate(scripted, RATES, 1000.0, enough) == 0.25
    assert scripted.tried == [0.0625, 0.125, 0.25]
    assert largest_rate(scripted, RATES, 1000.0, enough - 2) == 0.125


def test_running_out_of_memory_in_a_step_is_an_answer_too(scripted, monkeypatch):
    assert largest_rate(scripted, [0.25, 0.125], 1000.0, PLENTY) == 0.25  # of the rates that are offered
    monkeypatch.setitem(scripted.times, 0.25, None)
    assert largest_rate(scripted, RATES, 1000.0, PLENTY) == 0.125


@pytest.mark.parametrize(("budget", "free", "why"), [(4.9, PLENTY, "5 s a round, over 4.9 s"), (9.0, 10, "0 MiB are")])
def test_where_nothing_fits_it_is_the_smallest_with_a_warning(scripted, caplog, budget, free, why):
    with caplog.at_level(logging.WARNING):
        assert largest_rate(scripted, RATES, budget, free) == 0.0625
    assert "level auto is e (level e: " in caplog.text
    assert why in caplog.text


def test_memory_counts_parameters_and_what_the_backward_pass_needs(trial):
    assert trial.memory(1.0) >= 4 * (5 * (8 * 64 + 64) + 10 * 64)
    many = Trial(Dense, torch.ones(1000, 8), 5, CPU)
    assert many.memory(1.0) - trial.memory(1.0) >= 4 * 990 * 64


def test_the_memory_of_a_model_that_is_cut_from_another_is_that_of_one_that_is_built(trial):
    def two(rate):
        return nn.Sequential(Dense(rate), nn.Linear(int(64 * rate), 4))

    def blocks(rate):
        return nn.Sequential(nn.Sequential(*(nn.Linear(8, 8) for _ in range(int(4 * rate)))))

    for cut, built in ((elastic(two(1.0), trial.inputs), two), (shallow(blocks(1.0), "0.*"), blocks)):
        values = {name: own.clone() for name, own in cut(1.0).state_dict().items()}
        for rate in (1.0, 0.25):
            one, other = (replace(trial, build=build) for build in (cut, built))
            assert one.memory(rate) == other.memory(rate)
        assert all(torch.equal(own, values[name]) for name, own in cut(1.0).state_dict().items())


def test_memory_is_at_least_what_a_step_takes_and_not_far_more():
    trial = Trial(PAPER["mnist"].build(), torch.rand(400, 1, 28, 28), 1, CPU)
    trial.seconds(0.0625)  # what torch keeps for itself is there already
    peak = peak_of(lambda: trial.seconds(0.25))
    if math.isnan(peak):
        pytest.skip("needs Linux")
    assert 0.9 * peak < trial.memory(0.25) < 4 * peak


def test_a_step_is_estimated_and_timed_without_touching_torchs_random_state():
    class Noisy(Dense):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    before, trial = torch.get_rng_state(), Trial(Noisy, torch.ones(10, 8), 5, CPU)
    assert trial.memory(1.0) > 0
    assert 0 < trial.seconds(1.0) < 5
    assert torch.equal(torch.get_rng_state(), before)


def test_the_key_names_all_that_a_measurement_depends_on(trial):
    others = [
        Trial(Dense, torch.ones(11, 8), 5, CPU),
        Trial(Dense, torch.ones(10, 8), 6, CPU),
        Trial(Dense, torch.ones(10, 8), 5, torch.device("cuda:0")),
        Trial(lambda rate: nn.Sequential(Dense(rate), Dense(rate)), torch.ones(10, 8), 5, CPU),
    ]
    keys = {other.key(RATES) for other in others} | {trial.key([1.0])}
    assert len(keys) == 5
    assert trial.key(RATES) not in keys
    assert trial.key(RATES[::-1]) == Trial(Dense, torch.zeros(10, 8), 5, CPU).key(RATES)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(capacity.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_024_000))
    monkeypatch.setattr(capacity, "_CGROUP", tmp_path)
    assert free_bytes(CPU) == 1_024_000  # no limit
    for limit, used, free in (
        ("max", "5", 1_024_000),
        ("600", "100", 500),
        ("600", "700", 0),
        ("9999999", "0", 1_024_000),
    ):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        assert free_bytes(CPU) == free
    (tmp_path / "memory.max").write_text("600\n")
    (tmp_path / "memory.current").write_text("500\n")
    (tmp_path / "memory.stat").write_text("anon 100\nactive_file 150\ninactive_file 250\n")
    assert free_bytes(CPU) == 350  # files that were read make room


def test_a_model_that_cannot_be_estimated_says_what_to_do():
    def build(rate):
        return nn.Linear(2, int(torch.ones(1).item()))

    with pytest.raises(ConfigError, match="name this node's level instead of level='auto'"):
        Trial(build, torch.ones(1, 2), 1, CPU).memory(1.0)

    class Peeks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ConfigError, match="cannot be estimated without running it"):
        Trial(lambda rate: Peeks(2, 2), torch.ones(1, 2), 1, CPU).memory(1.0)


def test_a_step_is_timed_whatever_the_model_returns_its_outputs_in():
    class Named(Dense):
        def forward(self, x):
            return {"number": len(x), "logits": super().forward(x)}

    assert Trial(Named, torch.ones(10, 8), 5, CPU).seconds(1.0) > 0

    class Nothing(Dense):
        def forward(self, x):
            return {"classes": super().forward(x).argmax(1)}

    with pytest.raises(ConfigError, match=r"returns dict, in which there are no outputs to train on.*name this node's"):
        Trial(Nothing, torch.ones(10, 8), 5, CPU).seconds(1.0)


def test_a_batch_of_one_that_batch_norm_cannot_normalise_is_a_clear_error():
    trial = Trial(lambda rate: nn.BatchNorm1d(8), torch.ones(1, 8), 5, CPU)
    with pytest.raises(ConfigError, match=r"Expected more than 1 value per channel.*name this node's level"):
        largest_rate(trial, RATES, 1.0, PLENTY)


@pytest.mark.parametrize(("inputs", "steps"), [(torch.empty(0, 8), 5), (torch.ones(1, 8), 0)])
def test_no_data_is_an_error(inputs, steps):
    with pytest.raises(DataError, match="no examples to try"):
        Trial(Dense, inputs, steps, CPU)
