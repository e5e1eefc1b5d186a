"""How many replies a round needs, and what happens where fewer come."""

import pytest

from heterofl_flwr import DeviceProfile, Devices, SimulatedDevices
from heterofl_flwr.errors import RoundError
from heterofl_flwr.federation.limits import least_replies
from tests.federation.tiny import crash, make_app, play


def start(nodes, crashing, **options):
    """Return a run in which so many clients fail."""
    return play(make_app(odd=dict.fromkeys(range(nodes - crashing, nodes), crash)), nodes=nodes, **options)


@pytest.mark.parametrize(("nodes", "crashing", "least"), [(20, 19, 10), (4, 3, 2), (3, 2, 2), (5, 3, 3)])
def test_with_fewer_than_half_of_the_replies_a_round_fails_and_says_why_and_what_to_do(nodes, crashing, least):
    good = nodes - crashing
    with pytest.raises(RoundError) as info:
        start(nodes, crashing)
    said = str(info.value)
    assert f"round 1: {good} of {nodes} clients gave a usable reply, expected at least {least}" in said
    assert f"partition {good}: error 2: " in said
    assert "the disk is full" in said
    assert "min_replies" in said
    assert "sample.min-replies" in said
    assert said.count("partition ") == min(crashing, 3)
    assert (f"{crashing - 3} more failed" in said) == (crashing > 3)


@pytest.mark.parametrize(("nodes", "crashing"), [(4, 2), (3, 1), (5, 2), (2, 1), (1, 0)])
def test_with_half_of_the_replies_it_goes_on(nodes, crashing):
    assert len(start(nodes, crashing, min_available_nodes=1).log.failures) == crashing


def test_one_reply_is_enough_where_that_is_asked_for():
    assert len(start(20, 19, min_replies=1).log.failures) == 19


def test_a_share_counts_of_the_clients_that_are_asked():
    start(10, 2, min_replies=0.8)
    with pytest.raises(RoundError, match="7 of 10 clients gave a usable reply, expected at least 8"):
        start(10, 3, min_replies=0.8)


def test_half_is_half_of_those_needed_not_of_the_spare_ones():
    # Four are needed and eight are asked.
    assert len(start(8, 6, fraction_train=0.5, spare=1.0).log.failures) == 6
    with pytest.raises(RoundError, match="1 of 8 clients gave a usable reply, expected at least 2"):
        start(8, 7, fraction_train=0.5, spare=1.0)


def simulated(crashing, **options):
    """Return the record of a round in which partition p takes p + 1 seconds; three of six come in time."""
    profile = DeviceProfile(macs_per_second=1.0, download=1e12, upload=1e12)
    devices = Devices({"a": profile}, lambda kind, partition, rate, examples: 1.0 + partition, deadline=3.5)
    app = make_app(odd=dict.fromkeys(range(crashing), crash))
    return play(app, nodes=6, wrap=lambda grid: SimulatedDevices(grid, devices, **options), **options).log


def test_what_simulated_devices_lose_does_not_count_as_asked():
    assert sorted(simulated(0).failures) == [3, 4, 5]
    assert sorted(simulated(1).failures) == [0, 3, 4, 5]
    with pytest.raises(RoundError, match="1 of 6 clients gave a usable reply, expected at least 2"):
        simulated(2)


def test_simulated_devices_leave_the_number_or_share_that_is_asked_for():
    assert sorted(simulated(0, min_replies=4).failures) == [4, 5]
    assert sorted(simulated(0, min_replies=0.8).failures) == [5]


@pytest.mark.parametrize(("value", "needed", "least"), [("auto", 1, 1), ("auto", 7, 4), (3, 9, 3), (0.7, 10, 7)])
def test_the_least_number_of_replies(value, needed, least):
    assert least_replies(value, needed) == least
