"""Rounds on simulated devices: who takes part, what is refused, and time and energy beside a slow twin."""

import math

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from heterofl_flwr import DeviceProfile, Devices, Evaluation, HeteroFL, LocalGrid, SimulatedDevices, Windowed
from heterofl_flwr.client import share_of_work
from heterofl_flwr.errors import ConfigError, ReplyError
from heterofl_flwr.exchange import outcomes
from heterofl_flwr.federation.records import RunState
from heterofl_flwr.grids.devices import Turn
from heterofl_flwr.grids.simulated import AWAY, DROPPED_OUT
from heterofl_flwr.messages import SimulatedFault
from heterofl_flwr.strategies.fedh2l import FedH2L
from tests.federation import test_fedh2l
from tests.federation.tiny import Keep, Watched, add_one, build, equal, make_app

NEVER = Evaluation(every=0)
LINKS = {"download": 1000.0, "upload": 500.0, "compute_watts": 5.0, "radio_watts": 2.0}
PLAIN = DeviceProfile(macs_per_second=1e6, **LINKS)
WILD = {
    "a": DeviceProfile(macs_per_second=1e6, available=0.6, drop_out=0.4, least_work=0.3, jitter=0.5, **LINKS),
    "c": DeviceProfile(macs_per_second=2e5, available=0.8, drop_out=0.2, least_work=0.6, jitter=0.2, **LINKS),
}


def work(kind, partition, rate, examples):
    return 1e6 * rate * examples


def on(grid, devices, min_replies="auto"):
    return grid if devices is None else SimulatedDevices(grid, devices, min_replies=min_replies)


def run(grid, devices, num_rounds=1, *, resume=None, mix="a1-c1", min_replies="auto", **options):
    keep = Keep()
    options = {"evaluation": NEVER, "callbacks": [keep], "min_replies": min_replies} | options
    strategy = HeteroFL(build, mix, **options)
    result = strategy.start(on(grid, devices, min_replies), num_rounds=num_rounds, resume=resume)
    return keep.records, result.arrays.to_torch_state_dict(), strategy


def on_tiny(devices, *args, nodes=4, app=None, **options):
    with LocalGrid(app or make_app(), nodes) as grid:
        return run(grid, devices, *args, **options)


def without_seconds(records):
    return [{**record.to_json(), "seconds": 0.0} for record in records]


def twin(devices, record, sizes, seed=0):
    """Return time and energy of a round, worked out client by client."""
    ends, joules, examples = {}, 0.0, {}
    gone = [partition for partition, fault in record.failures.items() if fault == DROPPED_OUT]
    there = {partition: rate for partition, rate in record.rates.items() if record.failures.get(partition) != AWAY}
    for partition in there:
        if partition not in gone:
            examples[partition] = 1 + partition
    for partition, rate in there.items():
        turn, own = Turn(seed, record.server_round, partition, rate), devices.profile(rate)
        number = examples.get(partition, round(sum(examples.values()) / len(examples)))
        part = devices.step_share(turn) * (turn.progress if partition in gone else 1)
        pace = turn.draws("pace").lognormvariate(0, own.jitter)
        computing = work("train", partition, rate, number) * part / own.macs_per_second / pace
        sending = sizes[rate] / own.download + (0 if partition in gone else sizes[rate] / own.upload)
        joules += computing * 5 + sending * 2
        if record.failures.get(partition) not in (late(devices.deadline), DROPPED_OUT):
            ends[partition] = computing + sending
    lost = devices.deadline < math.inf and set(record.failures.values()) - {AWAY}
    waits = [*ends.values(), *([devices.deadline] if lost else [])]
    return max(waits), joules


@pytest.mark.parametrize("deadline", [4.0, math.inf])
def test_time_and_energy_are_those_of_the_slow_twin(deadline):
    devices = Devices(WILD, work, deadline=deadline)
    records, _, strategy = on_tiny(devices, 12, nodes=6, fraction_train=0.7)
    arrays = strategy.federation.initial_state()
    sizes = {
        rate: sum(len(array.data) for array in ArrayRecord(strategy.federation.plan(rate).extract(arrays)).values())
        for rate in (1.0, 0.25)
    }
    for record in records:
        seconds, joules = twin(devices, record, sizes)
        assert record.simulated_seconds == pytest.approx(seconds, rel=1e-12)
        assert record.joules == pytest.approx(joules, rel=1e-12)
    faults = {fault for record in records for fault in record.failures.values()}
    assert faults == {AWAY, DROPPED_OUT, *([late(4)] if deadline == 4 else [])}


def test_clients_that_are_away_get_no_message():
    devices = Devices({"a": DeviceProfile(macs_per_second=1.0, available=0.5, **LINKS)}, work, deadline=1e9)
    with Watched(make_app(), 8) as grid:
        records, _, _ = run(grid, devices, 10, mix="a1", fraction_train=0.5, min_replies=2)
        asked = {}
        for message in grid.of("train"):
            asked.setdefault(message.content["config"]["server-round"], set()).add(grid.partition_of(message))
    for record in records:
        turns = {partition: Turn(0, record.server_round, partition, 1.0) for partition in record.rates}
        there = devices.present(turns, 2)
        assert asked[record.server_round] == set(there)
        assert record.failures == {partition: AWAY for partition in record.rates if partition not in there}
        assert record.simulated_seconds < 1e9  # nobody waits for them
    assert min(map(len, asked.values())) == 2 < max(map(len, asked.values()))


def test_some_drop_out_and_min_replies_stay():
    devices = Devices({"a": DeviceProfile(macs_per_second=1.0, drop_out=0.99, **LINKS)}, work)
    with Watched(make_app(), 5) as grid:
        ((record,), state, strategy) = run(grid, devices, mix="a1", min_replies=2)
        asked = {grid.partition_of(message) for message in grid.of("train")}
    assert len(asked) == 2
    assert record.failures == {partition: DROPPED_OUT for partition in range(5) if partition not in asked}
    start = strategy.federation.initial_state()["hidden.bias"]
    assert (state["hidden.bias"] - start).tolist() == pytest.approx([1 + sum(asked) / 2] * 8, abs=1e-5)
    assert record.bytes_down == 5 / 2 * record.bytes_up  # they got the model all the same


def test_clients_are_told_their_share_of_the_work():
    seen = {}

    def train(message, context):
        seen[context.node_config["partition-id"]] = share_of_work(message)
        return add_one(message, context)

    devices = Devices(WILD, work)
    with Watched(make_app(train), 4) as grid:
        (record,), _, _ = run(grid, devices)
        assert all(("work" in message.content["config"]) for message in grid.of("train"))
    shares = {partition: devices.step_share(Turn(0, 1, partition, rate)) for partition, rate in record.rates.items()}
    assert seen == {partition: shares[partition] for partition in seen}
    assert all(0.3 <= share < 1 for share in seen.values())
    with Watched(make_app(train), 4) as grid:
        run(grid, Devices({"a": PLAIN}, work))
        assert not any("work" in message.content["config"] for message in grid.sent)
    assert set(seen.values()) == {1.0}


def late(seconds):
    return f"simulated: later than the deadline of {seconds:g} s"


def deadline_of(seconds, **options):
    """Return devices on which partition p trains for p + 1 seconds, and sends in no time."""
    own = DeviceProfile(macs_per_second=1e6, download=1e12, upload=1e12, compute_watts=1.0)
    return Devices({"a": own}, work, deadline=seconds)


def crash(message, context):
    raise RuntimeError("the worker is gone")


def test_clients_that_fail_have_their_own_fault_and_no_time(caplog):
    app = make_app(odd={5: crash})
    (record,), _, _ = on_tiny(deadline_of(3.5), mix="a1", nodes=6, app=app)
    assert {partition: record.failures[partition] for partition in (3, 4)} == {3: late(3.5), 4: late(3.5)}
    assert "the worker is gone" in record.failures[5]
    assert record.joules == pytest.approx(1 + 2 + 3 + 4 + 5, rel=1e-6)
    assert late(3.5) not in caplog.text  # what is meant to happen is no warning


@pytest.mark.parametrize(("deadline", "least"), [(40.0, 6), (0.5, 1), (0.5, 3)])
def test_a_round_waits_for_the_fastest_that_it_needs(deadline, least):
    (record,), state, strategy = on_tiny(deadline_of(deadline), mix="a1", nodes=6, min_replies=least)
    assert sorted(record.failures) == list(range(least, 6))
    assert record.simulated_seconds == pytest.approx(least, rel=1e-6)
    start = strategy.federation.initial_state()["hidden.bias"]
    mean = sum(range(1, least + 1)) / least
    assert (state["hidden.bias"] - start).tolist() == pytest.approx([mean] * 8, abs=1e-5)
    assert record.bytes_up == record.bytes_down / 6 * least


def test_replies_come_in_order_though_the_first_is_decided_last():
    own = DeviceProfile(macs_per_second=1.0, download=1e12, upload=1e12)
    devices = Devices({"a": own}, lambda kind, partition, rate, examples: 10 - partition, deadline=4.5)
    with LocalGrid(make_app(), 8) as grid:
        strategy = HeteroFL(build, "a1", evaluation=NEVER)
        arrays = ArrayRecord(strategy.federation.initial_state())
        messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        replies = list(on(grid, devices, 4).send_and_receive(messages))
    assert [reply.metadata.src_node_id for reply in replies] == [message.metadata.dst_node_id for message in messages]
    assert [reply.has_error() for reply in replies] == [True] * 4 + [False] * 4


def test_a_grid_that_sees_no_whole_round_raises():
    with LocalGrid(make_app(), 4) as grid:
        with pytest.raises(ConfigError, match=r"put Windowed inside.*take SimulatedArrivals"):
            run(Windowed(SimulatedDevices(grid, deadline_of(1.0)), 2), None)
        with pytest.raises(ConfigError, match=r"put Windowed inside.*take SimulatedArrivals"):
            run(grid, deadline_of(1.0), fraction_train=0.5, spare=0.5)
        messages = [Message(RecordDict(), next(iter(grid.get_node_ids())), "train")]
        with pytest.raises(ReplyError, match="the server's strategy is not HeteroFL"):
            on(grid, deadline_of(1.0)).send_and_receive(messages)


def test_no_client_can_claim_that_its_fault_is_simulated():
    fault = SimulatedFault(DROPPED_OUT)
    with LocalGrid(make_app(), 1):
        message = Message(RecordDict(), 3, "train")
        answers = [Message(own, reply_to=message) for own in (fault, Error(fault.code, fault.reason))]
    told, claimed = (found for answer in answers for _, found in outcomes([message], [answer]))
    assert (told.reason, told.kind) == (DROPPED_OUT, "simulated")
    assert (claimed.reason, claimed.kind) == (f"error {fault.code}: {DROPPED_OUT}", "failed")


def test_a_run_that_goes_on_is_one_that_never_stopped():
    devices, options = Devices(WILD, work, deadline=4.0), {"assignment": "dynamic", "fraction_train": 0.7}
    with LocalGrid(make_app(), 6) as grid:
        whole, expected, _ = run(grid, devices, 6, **options)
        first, state, _ = run(Windowed(grid, 2), devices, 3, **options)
        second, found, _ = run(grid, devices, 6, resume=RunState(server_round=3, state=state), **options)
    assert equal(found, expected)
    assert without_seconds([*first, *second]) == without_seconds(whole)


class TestFedH2L:
    def play(self, devices, **options):
        keep = Keep()
        strategy = FedH2L(3, seed_size=10, seed_batch=4, evaluation=NEVER, callbacks=[keep], **options)
        with Watched(test_fedh2l.app_of(), 3) as grid:
            strategy.start(on(grid, devices, **options), num_rounds=1)
        return keep.records[0], grid

    def work(self, kind, partition, rate, examples):
        """Return work of 1, 2 and 3 s to train, and of 10, 20 and 30 s to learn."""
        return {"train.publish": 1e6, "train.learn": 1e7}[kind] * (1 + partition) * examples / 5

    def devices(self, deadline=math.inf, **options):
        own = DeviceProfile(macs_per_second=1e6, download=1e12, upload=1e12, compute_watts=1.0, **options)
        return Devices({"a": own}, self.work, deadline=deadline)

    def test_the_deadline_holds_for_each(self):
        record, grid = self.play(self.devices(2.5))
        assert record.failures == {2: late(2.5), 1: late(2.5)}
        assert {grid.partition_of(message) for message in grid.of("train.learn")} == {0, 1}
        assert record.simulated_seconds == pytest.approx(2.5 + 10, rel=1e-6)
        assert record.joules == pytest.approx(1 + 2 + 3 + 10 + 20, rel=1e-6)
