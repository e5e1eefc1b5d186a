"""Rounds on simulated devices: who takes part, what is refused, and time and energy beside a slow twin."""

import math

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict

from heterofl_flwr import (
    Buffered,
    DeviceProfile,
    Devices,
    DistillOptions,
    FedH2L,
    HeteroFL,
    LocalGrid,
    RoundCallback,
    SimulatedDevices,
)
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ReplyError, RoundError
from heterofl_flwr.grids.device_costs import Turn
from heterofl_flwr.grids.simulated_devices import AWAY, DROPPED_OUT
from heterofl_flwr.strategies.round_messages import outcomes
from heterofl_flwr.transport.arrays import content_bytes, count_bytes
from heterofl_flwr.transport.messages import LocalFault
from tests.federation import test_fedh2l
from tests.federation.tiny import NEVER, add_one, build, crash, make_app, play

LINKS = {"download": 1000.0, "upload": 500.0, "compute_watts": 5.0, "radio_watts": 2.0}
FREE = {"download": 1e12, "upload": 1e12}
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
    start = found.before["hidden.bias"]
    return pytest.approx((found.state["hidden.bias"] - start).tolist(), abs=1e-5)


def twin(devices, record, sizes):
    """Return time and energy of a round, worked out client by client."""
    waits, joules = [0.0], 0.0
    for partition, rate in record.rates.items():
        turn, own = Turn(0, record.server_round, partition, rate), devices.profile(rate)
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
    arrays, plan = found.before, found.architecture.plan
    sizes = {rate: count_bytes(ArrayRecord(plan(rate).extract(arrays))) for rate in (1.0, 0.25)}
    for record in found.records:
        seconds, joules = twin(devices, record, sizes)
        assert record.simulated_seconds == pytest.approx(seconds, rel=1e-12)
        assert record.joules == pytest.approx(joules, rel=1e-12)
    faults = {fault for record in found.records for fault in record.failures.values()}
    assert faults == {AWAY, DROPPED_OUT, *([late(4)] if deadline == 4 else [])}


@pytest.mark.parametrize(
    "options",
    [{"fraction_train": 0.5}, {"fraction_train": 0.5, "spare": 0.5}, {"asynchronous": Buffered(size=2, concurrency=2)}],
    ids=str,
)
def test_clients_that_are_away_get_no_message(options):
    devices = Devices({"a": DeviceProfile(macs_per_second=1.0, available=0.5, **LINKS)}, work, deadline=1e9)
    found = run(devices, None, "a1", 8, 10, **options)
    configs = [message.content["config"] for message in found.grid.of("train")]
    asked = [Turn(0, config["server-round"], config["partition"], 1.0) for config in configs]
    away = [Turn(0, record.server_round, own, 1.0) for record in found.records for own in record.failures]
    assert away
    assert [*map(devices.is_away, asked), *map(devices.is_away, away)] == [False] * len(asked) + [True] * len(away)
    size = content_bytes(found.grid.of("train")[0].content)
    for record in found.records:
        assert {*record.failures.values()} <= {AWAY}
        assert {*record.unsent} == record.failures.keys()
        assert (
            record.bytes_down == record.bytes_by_level.get("a", 0) == size * (len(record.rates) - len(record.failures))
        )
        assert record.simulated_seconds < 1e9  # nobody waits for them
    still_training = len(asked) + len(away) - sum(len(record.rates) for record in found.records)
    assert 0 <= still_training <= found.strategy.options.asynchronous.concurrency


def test_clients_are_told_their_share_of_the_work():
    seen = {}

    def train(message, context):
        seen[context.node_config["partition-id"]] = Task(message, context, build).work
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
    assert record.simulated_seconds == 3.5
    assert record.bytes_up == record.bytes_down / 2
    assert record.joules == pytest.approx(1 + 2 + 3 + 4 + 5, rel=1e-6)
    assert late(3.5) not in caplog.text  # what is meant to happen is no warning


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
    fault = LocalFault(DROPPED_OUT, "simulated")
    with LocalGrid(make_app(), 1):
        message = Message(RecordDict(), 3, "train")
        answers = [Message(own, reply_to=message) for own in (fault, Error(fault.code, fault.reason))]
    told, claimed = (found for answer in answers for _, found in outcomes([message], [answer]))
    assert (told.reason, told.kind) == (DROPPED_OUT, "simulated")
    assert (claimed.reason, claimed.kind) == (f"error {fault.code}: {DROPPED_OUT}", "gone")


def test_a_client_whose_device_drops_out_keeps_its_earlier_layers():
    begins = {}

    def train(message, context):
        task = Task(message, context, build)
        begins[task.instruction.server_round, task.instruction.partition] = task.model().classifier.bias[0].item()
        return add_one(message, context)

    profile = DeviceProfile(macs_per_second=1.0, drop_out=0.5, **LINKS)
    found = run(Devices({"a": profile}, work), make_app(train), num_rounds=4, shared=["hidden.*"])
    lost = {(record.server_round, partition) for record in found.records for partition in record.failures}
    assert lost
    for number, partition in begins:
        trained = sum((earlier, partition) not in lost for earlier in range(1, number))
        gained = begins[number, partition] - begins[1, partition]
        assert gained == pytest.approx((1 + partition) * trained, abs=1e-5)


def test_growing_slices_train_on_the_devices_of_their_own_levels():
    fast, slow = (DeviceProfile(macs_per_second=pace, compute_watts=1.0, **FREE) for pace in (1e6, 1e3))
    record = run(Devices({"a": fast, "c": slow}, work), mix="a1-c1", nodes=2, growth=1).log
    assert record.rates == {0: 0.25, 1: 0.25}
    assert record.joules == pytest.approx(0.25 + 2 * 250, rel=1e-6)
    assert record.simulated_seconds == pytest.approx(500, rel=1e-6)


def test_the_deadline_holds_for_each_exchange_of_fedh2l():
    def seconds(kind, partition, rate, examples):
        return {"train.publish": 1.0, "train.learn": 10.0}[kind] * (1 + partition) * examples / 5

    own = DeviceProfile(macs_per_second=1.0, download=1e12, upload=1e12, compute_watts=1.0)
    strategy = FedH2L(3, distill=DistillOptions(seed_size=10, seed_batch=4), evaluation=NEVER)
    with LocalGrid(test_fedh2l.app_of(), 3) as grid:
        strategy.start(SimulatedDevices(grid, Devices({"a": own}, seconds, deadline=15.0)), num_rounds=1)
    assert strategy.log.failures == {2: late(15.0), 1: late(15.0)}
    assert strategy.log.simulated_seconds == pytest.approx(3 + 15, rel=1e-6)
    assert strategy.log.joules == pytest.approx(1 + 2 + 3 + 10 + 20 + 30, rel=1e-6)


QUICK = {"download": 1e12, "upload": 1e12, "compute_watts": 2.0}
PACE = DeviceProfile(macs_per_second=1.0, **QUICK)


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


def on(devices, number, app):
    """Return what each look brings for the messages of a round."""
    with LocalGrid(app, number) as inner:
        strategy = HeteroFL(build, "a1", evaluation=NEVER)
        arrays = ArrayRecord(strategy.federation.architecture.initial_state())
        messages = strategy.configure_train(1, arrays, ConfigRecord(), inner)
        grid = SimulatedDevices(inner, devices)
        nodes = list(inner.get_node_ids())
        found = pull_all(grid, grid.push_messages(messages))
    return [(round(when, 6), [(nodes.index(node), error) for node, error in own]) for when, own in found]


ONE, TWO = (1, [(1, False)]), (2, [(3, False)])


@pytest.mark.parametrize(
    ("devices", "number", "odd", "expected"),
    [
        (Devices({"a": PACE}, takes(3, 1, 3, 2)), 4, {}, [ONE, TWO, (3, [(0, False), (2, False)])]),
        (Devices({"a": PACE}, takes(3, 1), deadline=2.0), 2, {}, [ONE, (2, [(0, True)])]),
        (Devices({"a": PACE}, takes(3, 1)), 2, {0: crash}, [(0, [(0, True)]), ONE]),
    ],
    ids=["ties together", "late ones at the deadline", "faults at once"],
)
def test_replies_arrive_when_devices_send_them(devices, number, odd, expected):
    assert on(devices, number, make_app(odd=odd)) == expected


def test_asynchronous_steps_that_fail_cancel_their_messages():
    class Broken(RoundCallback):
        def on_round_end(self, progress):
            raise RuntimeError("the disk is full")

    buffered = Buffered(size=1, concurrency=3)
    strategy = HeteroFL(build, "a1", evaluation=NEVER, asynchronous=buffered, callbacks=[Broken()])
    with LocalGrid(make_app(), 4) as inner:
        grid = SimulatedDevices(inner, Devices({"a": PACE}, takes(1, 2, 3, 4)))
        with pytest.raises(RuntimeError, match="the disk is full"):
            strategy.start(grid, num_rounds=2)
        assert not grid._out


def test_with_spare_clients_a_round_ends_with_the_last_it_needs():
    devices = Devices({"a": PACE}, takes(3, 1, 4, 2))
    options = {"wrap": lambda grid: SimulatedDevices(grid, devices), "fraction_train": 0.5, "spare": 1.0}
    records = play(None, "a1-c1", 4, 3, **options).records
    assert [round(record.simulated_seconds, 6) for record in records] == [2, 2, 2]
    mean = (1 * 2 + 3 * 4) / (2 + 4)  # of the fast clients 1 and 3: their losses, weighted by their examples
    assert [record.train["loss"] for record in records] == pytest.approx([mean] * 3)
