"""Rounds on simulated devices: who takes part, what is refused, and time and energy beside a slow twin."""

import math

import pytest
import torch
from flwr.app import ArrayRecord

from heterofl_flwr import DeviceProfile, Devices, Evaluation, HeteroFL, LocalGrid, RoundCallback, Windowed
from heterofl_flwr.client import reply, share_of_work, submodel
from heterofl_flwr.errors import ReplyError
from heterofl_flwr.methods.devices import Turn, reached
from heterofl_flwr.methods.fedh2l import FedH2L
from heterofl_flwr.methods.simulated import DROPPED_OUT
from tests.methods import test_fedh2l
from tests.methods.tiny import Watched, add_one, build, equal, make_app

NEVER = Evaluation(every=0)
LINKS = {"download": 1000.0, "upload": 500.0, "compute_watts": 5.0, "radio_watts": 2.0}
PLAIN = DeviceProfile(macs_per_second=1e6, **LINKS)
WILD = {
    "a": DeviceProfile(macs_per_second=1e6, available=0.6, drop_out=0.4, least_work=0.3, jitter=0.5, **LINKS),
    "c": DeviceProfile(macs_per_second=2e5, available=0.8, drop_out=0.2, least_work=0.6, jitter=0.2, **LINKS),
}


def work(kind, partition, rate, examples):
    return 1e6 * rate * examples


class Keep(RoundCallback):
    def __init__(self):
        self.records = []

    def on_round_end(self, progress):
        self.records.append(progress.record)
        return False


def run(grid, devices, num_rounds=1, *, arrays=None, first_round=1, mix="a1-c1", **options):
    keep = Keep()
    strategy = HeteroFL(build, mix, evaluation=NEVER, callbacks=[keep], devices=devices, **options)
    result = strategy.start(grid, arrays, num_rounds, first_round=first_round)
    return keep.records, result.arrays.to_torch_state_dict(), strategy


def on_tiny(devices, *args, nodes=4, app=None, **options):
    with LocalGrid(app or make_app(), nodes) as grid:
        return run(grid, devices, *args, **options)


def without_seconds(records):
    return [{**record.to_json(), "seconds": 0.0} for record in records]


def test_devices_that_never_fail_change_no_bit_of_the_model():
    records, state, _ = on_tiny(None, 2)
    simulated, same, _ = on_tiny(Devices({"a": PLAIN}, work), 2)
    assert equal(state, same)
    assert [(record.simulated_seconds, record.joules) for record in records] == [(0, 0)] * 2
    times = [{**one, "simulated_seconds": 0.0, "joules": 0.0} for one in without_seconds(simulated)]
    assert times == without_seconds(records)
    assert simulated[0].simulated_seconds > 0


def twin(devices, record, sizes, seed=0):
    """Return time and energy of a round, worked out client by client."""
    ends, joules, examples = {}, 0.0, {}
    late = f"simulated: later than the deadline of {devices.deadline:g} s"
    gone = [partition for partition, fault in record.failures.items() if fault == DROPPED_OUT]
    for partition in record.rates:
        if partition not in gone:
            examples[partition] = 1 + partition
    for partition, rate in record.rates.items():
        turn, own = Turn(seed, record.server_round, partition, rate), devices.profile(rate)
        number = examples.get(partition, round(sum(examples.values()) / len(examples)))
        part = devices.share(turn) * (reached(turn) if partition in gone else 1)
        pace = turn.draws("pace").lognormvariate(0, own.jitter)
        computing = work("train", partition, rate, number) * part / own.macs_per_second / pace
        sending = sizes[rate] / own.download + (0 if partition in gone else sizes[rate] / own.upload)
        joules += computing * 5 + sending * 2
        if record.failures.get(partition) not in (late, DROPPED_OUT):
            ends[partition] = computing + sending
    waits = [*ends.values(), *([devices.deadline] if record.failures and devices.deadline < math.inf else [])]
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
    assert faults == {DROPPED_OUT, *(["simulated: later than the deadline of 4 s"] if deadline == 4 else [])}
    assert len({tuple(record.rates) for record in records}) > 3  # who is there differs


def test_only_clients_that_are_there_are_drawn_and_as_many_as_ever_where_they_suffice():
    devices = Devices({"a": DeviceProfile(macs_per_second=1.0, available=0.5, **LINKS)}, work)
    records, _, _ = on_tiny(devices, 10, nodes=8, mix="a1", fraction_train=0.5)
    for record in records:
        turns = {partition: Turn(0, record.server_round, partition, 1.0) for partition in range(8)}
        there = devices.present(turns, 1)
        assert set(record.rates) <= set(there)
        assert len(record.rates) == min(4, len(there))
        assert record.failures == {}


def test_nobody_sends_to_a_client_that_drops_out_and_at_least_min_replies_stay():
    devices = Devices({"a": DeviceProfile(macs_per_second=1.0, drop_out=0.99, **LINKS)}, work)
    with Watched(make_app(), 5) as grid:
        ((record,), state, strategy) = run(grid, devices, mix="a1", min_replies=2)
        asked = {grid.partition_of(message) for message in grid.of("train")}
    assert len(asked) == 2
    assert record.failures == {partition: DROPPED_OUT for partition in range(5) if partition not in asked}
    start = strategy.federation.initial_state()["hidden.bias"]
    assert (state["hidden.bias"] - start).tolist() == pytest.approx([1 + sum(asked) / 2] * 8, abs=1e-5)
    assert record.bytes_down == 5 / 2 * record.bytes_up  # they got the model all the same


def test_clients_are_told_their_share_and_only_where_it_is_not_all():
    seen = {}

    def train(message, context):
        seen[context.node_config["partition-id"]] = share_of_work(message)
        return add_one(message, context)

    devices = Devices(WILD, work)
    with Watched(make_app(train), 4) as grid:
        (record,), _, _ = run(grid, devices)
        assert all(("work" in message.content["config"]) for message in grid.of("train"))
    shares = {partition: devices.share(Turn(0, 1, partition, rate)) for partition, rate in record.rates.items()}
    assert seen == {partition: shares[partition] for partition in seen}
    assert all(0.3 <= share < 1 for share in seen.values())
    with Watched(make_app(train), 4) as grid:
        run(grid, Devices({"a": PLAIN}, work))
        assert not any("work" in message.content["config"] for message in grid.sent)
    assert set(seen.values()) == {1.0}


@pytest.mark.parametrize("value", [0.0, 1.5, 1, "half"])
def test_what_is_no_share_is_refused_by_the_client(value):
    def train(message, context):
        message.content["config"]["work"] = value
        with pytest.raises(ReplyError, match=f"sent {value!r} as work, expected a number over 0 and up to 1"):
            share_of_work(message)
        return add_one(message, context)

    assert on_tiny(None, app=make_app(train))[0][0].failures == {}


LATE = "simulated: later than the deadline of 4.5 s"


def deadline_of(seconds, **options):
    """Return devices on which partition p trains for p + 1 seconds, and sends in no time."""
    own = DeviceProfile(macs_per_second=1e6, download=1e12, upload=1e12, compute_watts=1.0)
    return Devices({"a": own}, work, deadline=seconds)


def test_a_late_reply_is_refused_and_the_round_lasts_until_the_deadline():
    (record,), state, strategy = on_tiny(deadline_of(4.5), mix="a1", nodes=6)
    assert record.failures == {4: LATE, 5: LATE}
    assert record.simulated_seconds == 4.5
    assert record.joules == pytest.approx(1 + 2 + 3 + 4 + 5 + 6, rel=1e-6)
    start = strategy.federation.initial_state()["hidden.bias"]
    assert (state["hidden.bias"] - start).tolist() == pytest.approx([2.5] * 8, abs=1e-5)
    assert record.train["loss"] == pytest.approx((0 + 2 + 6 + 12) / 10)


def test_a_round_ends_before_the_deadline_where_all_came():
    (record,), _, _ = on_tiny(deadline_of(40.0), mix="a1", nodes=6)
    assert record.failures == {}
    assert record.simulated_seconds == pytest.approx(6, rel=1e-6)


@pytest.mark.parametrize(("least", "seconds"), [(1, 1), (3, 3)])
def test_where_too_few_come_in_time_the_fastest_are_waited_for(least, seconds):
    (record,), state, strategy = on_tiny(deadline_of(0.5), mix="a1", nodes=6, min_replies=least)
    assert sorted(record.failures) == list(range(least, 6))
    assert record.simulated_seconds == pytest.approx(seconds, rel=1e-6)
    start = strategy.federation.initial_state()["hidden.bias"]
    mean = sum(range(1, least + 1)) / least
    assert (state["hidden.bias"] - start).tolist() == pytest.approx([mean] * 8, abs=1e-5)
    assert record.bytes_up == record.bytes_down / 6 * least


def test_a_late_reply_that_does_not_fit_is_refused_for_that():
    def broken(message, context):
        model = submodel(message, build)
        model.hidden.bias = torch.nn.Parameter(torch.zeros(3))
        return reply(message, model, num_examples=2)

    (record,), _, _ = on_tiny(deadline_of(1.5), mix="a1", nodes=4, app=make_app(odd={1: broken}), min_replies=2)
    assert "hidden.bias" in record.failures[1]
    assert set(record.failures) == {1, 3}
    assert record.simulated_seconds == pytest.approx(3, rel=1e-6)


def test_a_run_that_goes_on_is_one_that_never_stopped():
    devices, options = Devices(WILD, work, deadline=4.0), {"assignment": "dynamic", "fraction_train": 0.7}
    with LocalGrid(make_app(), 6) as grid:
        whole, expected, _ = run(grid, devices, 6, **options)
        first, state, _ = run(Windowed(grid, 2), devices, 3, **options)
        second, found, _ = run(grid, devices, 6, arrays=ArrayRecord(state), first_round=4, **options)
    assert equal(found, expected)
    assert without_seconds([*first, *second]) == without_seconds(whole)


class TestFedH2L:
    def play(self, devices, **options):
        keep = Keep()
        strategy = FedH2L(3, seed_size=10, seed_batch=4, evaluation=NEVER, callbacks=[keep], devices=devices, **options)
        with Watched(test_fedh2l.app_of(), 3) as grid:
            strategy.start(grid, num_rounds=1)
        return keep.records[0], grid

    def work(self, kind, partition, rate, examples):
        """Return work of 1, 2 and 3 s to train, and of 10, 20 and 30 s to learn."""
        return {"train.publish": 1e6, "train.learn": 1e7}[kind] * (1 + partition) * examples / 5

    def devices(self, deadline=math.inf, **options):
        own = DeviceProfile(macs_per_second=1e6, download=1e12, upload=1e12, compute_watts=1.0, **options)
        return Devices({"a": own}, self.work, deadline=deadline)

    def test_two_exchanges_follow_one_another(self):
        record, _ = self.play(self.devices())
        assert record.simulated_seconds == pytest.approx(3 + 30, rel=1e-6)
        assert record.joules == pytest.approx(6 + 60, rel=1e-6)

    def test_the_deadline_holds_for_each(self):
        record, grid = self.play(self.devices(2.5))
        late = "simulated: later than the deadline of 2.5 s"
        assert record.failures == {2: late, 1: late}
        assert {grid.partition_of(message) for message in grid.of("train.learn")} == {0, 1}
        assert record.simulated_seconds == pytest.approx(
            2.5 + 10, rel=1e-6
        )  # the second waits for the one that it needs
        assert record.joules == pytest.approx(1 + 2 + 3 + 10 + 20, rel=1e-6)

    def test_one_that_drops_out_neither_publishes_nor_learns(self):
        record, grid = self.play(self.devices(drop_out=0.999, least_work=0.5), min_replies=2)
        ((gone, fault),) = record.failures.items()
        assert fault == DROPPED_OUT
        asked = [grid.partition_of(message) for kind in ("publish", "learn") for message in grid.of(f"train.{kind}")]
        assert sorted(asked) == sorted([*(set(range(3)) - {gone})] * 2)
        assert all("work" in message.content["config"] for message in grid.of("train.learn"))
