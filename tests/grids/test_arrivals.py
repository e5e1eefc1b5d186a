"""Replies of simulated devices that arrive in the order of the devices' own time, beside what was drawn for each."""

import pytest
from flwr.app import ArrayRecord, ConfigRecord

from heterofl_flwr import DeviceProfile, Devices, HeteroFL, LocalGrid, SimulatedDevices
from heterofl_flwr.grids.devices import Turn
from tests.federation.tiny import NEVER, build, crash, make_app, play

LINKS = {"download": 1e12, "upload": 1e12, "compute_watts": 2.0}
PACE = DeviceProfile(macs_per_second=1.0, **LINKS)


def takes(*seconds):
    """Return the work of partitions that take so many seconds each."""
    return lambda kind, partition, rate, examples: seconds[partition]


def pull_all(grid, ids):
    """Return what each look brings, and when: the partitions, and whether they failed."""
    found, left = [], list(ids)
    while left:
        replies = grid.pull_messages(left)
        found.append((grid.seconds, [(reply.metadata.src_node_id, reply.has_error()) for reply in replies]))
        left = [id_ for id_ in left if id_ not in {reply.metadata.reply_to_message_id for reply in replies}]
    return found


def on(devices, number, *, app=None, mix="a1"):
    """Return what each look brings for the messages of a round."""
    with LocalGrid(app or make_app(), number) as inner:
        strategy = HeteroFL(build, mix, evaluation=NEVER)
        arrays = ArrayRecord(strategy.federation.initial_state())
        messages = strategy.configure_train(1, arrays, ConfigRecord(), inner)
        grid = SimulatedDevices(inner, devices)
        nodes = list(inner.get_node_ids())
        found = pull_all(grid, grid.push_messages(messages))
    return [(when, [(nodes.index(node), error) for node, error in own]) for when, own in found], grid


def test_replies_arrive_when_devices_send_them_ties_together():
    found, grid = on(Devices({"a": PACE}, takes(3, 1, 3, 2)), 4)
    assert [(round(when, 6), own) for when, own in found] == [
        (1, [(1, False)]),
        (2, [(3, False)]),
        (3, [(0, False), (2, False)]),
    ]
    assert grid.take_costs() == pytest.approx({"simulated_seconds": 3, "joules": 18}, rel=1e-6)
    assert grid.take_costs() == {"simulated_seconds": 0, "joules": 0}


def test_a_late_reply_is_a_fault_at_the_deadline():
    found, _ = on(Devices({"a": PACE}, takes(3, 1), deadline=2.0), 2)
    assert [(round(when, 6), own) for when, own in found] == [(1, [(1, False)]), (2, [(0, True)])]


def test_who_is_away_or_drops_out_is_what_was_drawn():
    profile = DeviceProfile(macs_per_second=1.0, available=0.5, drop_out=0.5, **LINKS)
    devices, number = Devices({"a": profile}, takes(*[10] * 12)), 12
    found, _ = on(devices, number)
    when = {partition: (time, error) for time, own in found for partition, error in own}
    kinds = set()
    for partition in range(number):
        turn = Turn(0, 1, partition, 1.0)
        away, drops = turn.draws("away").random() >= 0.5, turn.draws("drop-out").random() < 0.5
        expected = (0.0, True) if away else (10 * turn.progress, True) if drops else (10.0, False)
        assert when[partition] == (pytest.approx(expected[0], rel=1e-6), expected[1])
        kinds.add((away, drops and not away))
    assert len(kinds) == 3


def test_a_client_that_fails_takes_no_time():
    found, _ = on(Devices({"a": PACE}, takes(3, 1)), 2, app=make_app(odd={0: crash}))
    assert [(round(when, 6), own) for when, own in found] == [(0, [(0, True)]), (1, [(1, False)])]


def test_time_goes_on_from_message_to_message():
    devices = Devices({"a": PACE}, takes(1, 1))
    with LocalGrid(make_app(), 2) as inner:
        strategy = HeteroFL(build, "a1", evaluation=NEVER)
        arrays = ArrayRecord(strategy.federation.initial_state())
        grid = SimulatedDevices(inner, devices)
        for server_round in (1, 2):
            messages = strategy.configure_train(server_round, arrays, ConfigRecord(), inner)
            assert len(list(grid.send_and_receive(messages))) == 2
            assert grid.seconds == pytest.approx(server_round, rel=1e-6)


def test_with_spare_clients_a_round_ends_with_the_last_it_needs():
    devices = Devices({"a": PACE}, takes(3, 1, 4, 2))
    options = {"wrap": lambda grid: SimulatedDevices(grid, devices), "fraction_train": 0.5, "spare": 1.0}
    records = play(None, "a1-c1", 4, 3, **options).records
    assert [round(record.simulated_seconds, 6) for record in records] == [2, 2, 2]
    mean = (1 * 2 + 3 * 4) / (2 + 4)  # of the fast clients 1 and 3: their losses, weighted by their examples
    assert [record.train["loss"] for record in records] == pytest.approx([mean] * 3)
