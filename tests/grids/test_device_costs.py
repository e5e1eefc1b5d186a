"""What devices can do, and what chance has in store for them: draws by hand, by their shares, and by their names."""

import math
import statistics

import pytest
import torch
from hypothesis import given, strategies as st

from heterofl_flwr import DeviceProfile, Devices
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.core import LEVELS, width
from heterofl_flwr.grids.device_costs import EDGE, TrainingCost, Turn
from tests.federation.tiny import Tiny

FAST = DeviceProfile(macs_per_second=1e9, download=5.0, upload=3.0, compute_watts=10.0, radio_watts=1.0)
MANY = {partition: Turn(0, 1, partition, 1.0) for partition in range(3000)}


def nothing(kind, partition, rate, examples):
    return 0.0


def devices(**options):
    return Devices({"a": DeviceProfile(macs_per_second=1e9, download=5.0, upload=3.0, **options)}, nothing)


def test_a_rate_has_the_profile_of_the_nearest_larger_one():
    slow = DeviceProfile(macs_per_second=1.0, download=1.0, upload=1.0)
    found = Devices({"b": FAST, "d": slow}, nothing)
    given = {1.0: FAST, 0.5: FAST, 0.3: FAST, 0.25: FAST, 0.125: slow, 0.1: slow, 0.0625: slow}
    assert {rate: found.profile(rate) for rate in given} == given
    assert Devices({0.5: FAST, 0.125: slow}, nothing).profile(0.2) is FAST


def test_time_and_energy_are_those_worked_out_by_hand():
    costs = Devices({"a": FAST}, nothing).costs(Turn(0, 1, 0, 1.0), macs=2e9, down=10, up=6)
    assert costs == (2 + 10 / 5 + 6 / 3, 2 * 10 + 4 * 1)


def test_who_is_away_or_drops_out_is_a_share_of_the_clients():
    found = devices(available=0.7, drop_out=0.2)
    assert sum(map(found.is_away, MANY.values())) / len(MANY) == pytest.approx(0.3, abs=0.03)
    assert sum(map(found.drops_out, MANY.values())) / len(MANY) == pytest.approx(0.2, abs=0.03)
    assert not any(devices().is_away(turn) or devices().drops_out(turn) for turn in MANY.values())


def test_shares_of_the_work_are_even_and_the_pace_is_lognormal():
    found = devices(least_work=0.5, jitter=0.3)
    shares = [found.step_share(turn) for turn in MANY.values()]
    assert 0.5 <= min(shares) < 0.51
    assert 0.99 < max(shares) <= 1
    assert statistics.mean(shares) == pytest.approx(0.75, abs=0.01)
    paces = [math.log(1 / found.costs(turn, 1e9, 0, 0)[0]) for turn in MANY.values()]
    assert statistics.mean(paces) == pytest.approx(0, abs=0.02)
    assert statistics.stdev(paces) == pytest.approx(0.3, abs=0.02)
    assert {devices().step_share(turn) for turn in MANY.values()} == {1.0}


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 9), st.sampled_from(list(LEVELS.values())))
def test_a_turn_always_meets_the_same_fate(seed, server_round, partition, rate):
    def fate(*turn):
        found, own = Devices(EDGE, nothing), Turn(*turn, rate)
        ahead = own.draws("away").random(), own.draws("drop-out").random()
        return *ahead, own.draws("work").random(), found.costs(own, 1e9, 1, 1)[0], own.progress

    mine = fate(seed, server_round, partition)
    assert mine == fate(seed, server_round, partition)
    for other in ((seed + 1, server_round, partition), (seed, server_round + 1, partition), (seed, server_round, 99)):
        assert all(one != two for one, two in zip(mine, fate(*other), strict=True))


def test_all_invalid_fields_of_a_profile_are_named_at_once():
    with pytest.raises(ConfigError, match=r"macs_per_second is 0, .*available is 0, .*drop_out is 1, .*jitter is -1"):
        DeviceProfile(macs_per_second=0, download=1, upload=1, available=0, drop_out=1, jitter=-1)


@pytest.mark.parametrize("profiles", ["edge", [EDGE["a"]], {}, {"a": 1}])
def test_profiles_are_a_mapping(profiles):
    with pytest.raises(ConfigError, match=r"expected a mapping from levels to DeviceProfile, such as {'a': ") as error:
        Devices(profiles, nothing)
    Devices(eval(str(error.value).partition("such as ")[2]), nothing)


@pytest.mark.parametrize("deadline", [0, -1.0, math.nan, "60", None, True])
def test_a_deadline_is_a_time_above_0(deadline):
    with pytest.raises(ConfigError, match=r"deadline is .*; expected a number of seconds above 0"):
        Devices(EDGE, nothing, deadline=deadline)


def test_the_work_is_a_function_of_four_arguments():
    with pytest.raises(
        ConfigError, match=r"work is called as work\(kind, partition, rate, examples\), which fails: too"
    ):
        Devices(EDGE, lambda turn: 1000.0)


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.3])
def test_training_takes_three_forward_passes_of_each_example(rate):
    before = torch.get_rng_state()
    macs = (3 + 4) * width(8, rate)
    assert TrainingCost(Tiny, torch.zeros(1, 3), epochs=5)("train", 0, rate, 7) == 3 * 5 * 7 * macs
    assert TrainingCost(Tiny, torch.zeros(1, 3), inputs=2.5)("train", 0, rate, 1) == 3 * 2.5 * macs
    assert torch.equal(torch.get_rng_state(), before)  # measuring draws nothing


def test_with_models_inside_a_clients_own_it_is_the_mean():
    work = TrainingCost(Tiny, torch.zeros(1, 3), widths="ordered", rates=(1.0, 0.5, 0.25))
    assert work("train", 0, 0.5, 1) == 3 * (3 + 4) * (width(8, 0.5) + width(8, 0.25)) / 2
