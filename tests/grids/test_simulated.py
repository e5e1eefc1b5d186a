"""Rounds on simulated devices: who takes part, what is refused, and time and energy beside a slow twin."""

import math

import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict

from heterofl_flwr import DeviceProfile, Devices, LocalGrid, SimulatedDevices
from heterofl_flwr.client import share_of_work
from heterofl_flwr.errors import ReplyError, RoundError
from heterofl_flwr.exchange import outcomes
from heterofl_flwr.grids.devices import Turn
from heterofl_flwr.grids.simulated import AWAY, DROPPED_OUT
from heterofl_flwr.messages import SimulatedFault
from heterofl_flwr.packing import count_bytes
from heterofl_flwr.strategies.fedh2l import FedH2L
from tests.federation import test_fedh2l
from tests.federation.tiny import NEVER, add_one, crash, make_app, play

LINKS = {"download": 1000.0, "upload": 500.0, "compute_watts": 5.0, "radio_watts": 2.0}
PLAIN = DeviceProfile(macs_per_second=1e6, **LINKS)
WILD = {
    "a": DeviceProfile(macs_per_second=1e6, available=0.6, drop_out=0.4, least_work=0.3, jitter=0.5, **LINKS),
    "c": DeviceProfile(macs_per_second=2e5, available=0.8, drop_out=0.2, least_work=0.6, jitter=0.2, **LINKS),
}


def work(kind, partition, rate, examples):
    return 1e6 * rate * examples


def run(devices, app=None, mix="a1", nodes=4, num_rounds=1, **options):
    return play(app, mix, nodes, num_rounds, wrap=lambda grid: SimulatedDevices(grid, devices), **options)


def gain(found):
    """Return by how much the model changed, which is by the same everywhere."""
    start = found.strategy.federation.initial_state()["hidden.bias"]
    return pytest.approx((found.state["hidden.bias"] - start).tolist(), abs=1e-5)


def twin(devices, record, sizes, seed=0):
    """Return time and energy of a round, worked out client by client."""
    waits, joules = [0.0], 0.0
    for partition, rate in record.rates.items():
        turn, own = Turn(seed, record.server_round, partition, rate), devices.profile(rate)
        if turn.draws("away").random() >= own.available:
            assert record.failures[partition] == AWAY
            continue
        gone = turn.draws("drop-out").random() < own.drop_out
        part = devices.step_share(turn) * (turn.progress if gone else 1)
        pace = turn.draws("pace").lognormvariate(0, own.jitter)
        computing = work("train", partition, rate, 1 + partition) * part / own.macs_per_second / pace
        sending = sizes[rate] / own.download + (0 if gone else sizes[rate] / own.upload)
        joules += computing * 5 + sending * 2
        waits.append(min(computing + sending, devices.deadline))
        fault = late(devices.deadline) if computing + sending > devices.deadline else DROPPED_OUT if gone else None
        assert record.failures.get(partition) == fault
    return max(waits), joules


@pytest.mark.parametrize("deadline", [4.0, math.inf])
def test_time_and_energy_are_those_of_the_slow_twin(deadline):
    devices = Devices(WILD, work, deadline=deadline)
    found = run(devices, None, "a1-c1", 6, 12, fraction_train=0.7)
    arrays, plan = found.strategy.federation.initial_state(), found.strategy.federation.plan
    sizes = {rate: count_bytes(ArrayRecord(plan(rate).extract(arrays))) for rate in (1.0, 0.25)}
    for record in found.records:
        seconds, joules = twin(devices, record, sizes)
        assert record.simulated_seconds == pytest.approx(seconds, rel=1e-12)
        assert record.joules == pytest.approx(joules, rel=1e-12)
    faults = {fault for record in found.records for fault in record.failures.values()}
    assert faults == {AWAY, DROPPED_OUT, *([late(4)] if deadline == 4 else [])}


def test_clients_that_are_away_get_no_message():
    devices = Devices({"a": DeviceProfile(macs_per_second=1.0, available=0.5, **LINKS)}, work, deadline=1e9)
    found, asked = run(devices, None, "a1", 8, 10, fraction_train=0.5), {}
    for message in found.grid.of("train"):
        asked.setdefault(message.content["config"]["server-round"], set()).add(found.grid.partition_of(message))
    for record in found.records:
        turns = {partition: Turn(0, record.server_round, partition, 1.0) for partition in record.rates}
        there = {partition for partition, turn in turns.items() if not devices.is_away(turn)}
        assert asked.get(record.server_round, set()) == there
        assert record.failures == {partition: AWAY for partition in record.rates if partition not in there}
        assert record.simulated_seconds < 1e9  # nobody waits for them
    assert min(map(len, asked.values())) < max(map(len, asked.values()))


def test_clients_are_told_their_share_of_the_work():
    seen = {}

    def train(message, context):
        seen[context.node_config["partition-id"]] = share_of_work(message)
        return add_one(message, context)

    devices = Devices(WILD, work)
    found = run(devices, make_app(train), "a1-c1")
    assert all(("work" in message.content["config"]) for message in found.grid.of("train"))
    assert seen == {own: devices.step_share(Turn(0, 1, own, found.log.rates[own])) for own in seen}
    assert all(0.3 <= share < 1 for share in seen.values())
    found = run(Devices({"a": PLAIN}, work), make_app(train))
    assert not any("work" in message.content["config"] for message in found.grid.sent)
    assert set(seen.values()) == {1.0}


def late(seconds):
    return f"simulated: later than the deadline of {seconds:g} s"


def deadline_of(seconds):
    """Return devices on which partition p trains for p + 1 seconds, and sends in no time."""
    own = DeviceProfile(macs_per_second=1e6, download=1e12, upload=1e12, compute_watts=1.0)
    return Devices({"a": own}, work, deadline=seconds)


def test_clients_that_fail_have_their_own_fault_and_no_time(caplog):
    app = make_app(odd={5: crash})
    record = run(deadline_of(3.5), app, nodes=6).log
    assert {partition: record.failures[partition] for partition in (3, 4)} == {3: late(3.5), 4: late(3.5)}
    assert "the disk is full" in record.failures[5]
    assert record.joules == pytest.approx(1 + 2 + 3 + 4 + 5, rel=1e-6)
    assert late(3.5) not in caplog.text  # what is meant to happen is no warning


def test_a_round_lasts_until_the_deadline_where_any_is_late():
    found = run(deadline_of(3.5), nodes=6)
    assert sorted(found.log.failures) == [3, 4, 5]
    assert found.log.simulated_seconds == 3.5
    assert gain(found) == [2.0] * 8
    assert found.log.bytes_up == found.log.bytes_down / 2


def test_a_round_that_loses_all_leaves_the_model_as_it_is():
    found = run(deadline_of(0.5), num_rounds=2)
    assert gain(found) == [0.0] * 8
    for record in found.records:
        assert record.failures == dict.fromkeys(range(4), late(0.5))
        assert record.simulated_seconds == 0.5
    with pytest.raises(RoundError, match="0 of 4 clients gave a usable reply"):
        run(deadline_of(0.5), min_replies=1)


def test_messages_of_another_strategy_raise():
    with LocalGrid(make_app(), 1) as grid:
        messages = [Message(RecordDict(), next(iter(grid.get_node_ids())), "train")]
        with pytest.raises(ReplyError, match="the server's strategy is not HeteroFL"):
            SimulatedDevices(grid, deadline_of(1.0)).send_and_receive(messages)


def test_no_client_can_claim_that_its_fault_is_simulated():
    fault = SimulatedFault(DROPPED_OUT)
    with LocalGrid(make_app(), 1):
        message = Message(RecordDict(), 3, "train")
        answers = [Message(own, reply_to=message) for own in (fault, Error(fault.code, fault.reason))]
    told, claimed = (found for answer in answers for _, found in outcomes([message], [answer]))
    assert (told.reason, told.kind) == (DROPPED_OUT, "simulated")
    assert (claimed.reason, claimed.kind) == (f"error {fault.code}: {DROPPED_OUT}", "failed")


def test_the_deadline_holds_for_each_exchange_of_fedh2l():
    def seconds(kind, partition, rate, examples):
        return {"train.publish": 1.0, "train.learn": 10.0}[kind] * (1 + partition) * examples / 5

    own = DeviceProfile(macs_per_second=1.0, download=1e12, upload=1e12, compute_watts=1.0)
    strategy = FedH2L(3, seed_size=10, seed_batch=4, evaluation=NEVER)
    with LocalGrid(test_fedh2l.app_of(), 3) as grid:
        strategy.start(SimulatedDevices(grid, Devices({"a": own}, seconds, deadline=15.0)), num_rounds=1)
    assert strategy.log.failures == {2: late(15.0), 1: late(15.0)}
    assert strategy.log.simulated_seconds == pytest.approx(3 + 15, rel=1e-6)
    assert strategy.log.joules == pytest.approx(1 + 2 + 3 + 10 + 20 + 30, rel=1e-6)
