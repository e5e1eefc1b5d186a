"""Rounds that do not wait: beside rounds that do, beside a slow twin, after a break, and what is refused."""

import time
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.serverapp.exception import AggregationError

from heterofl_flwr import (
    Buffered,
    DeviceProfile,
    Devices,
    Evaluation,
    Fidelity,
    HeteroFL,
    Momentum,
    RoundCallback,
    SimulatedDevices,
)
from heterofl_flwr.client import Task
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.nn import build_model, shallow
from heterofl_flwr.nn.exits import with_exits
from heterofl_flwr.strategies import asynchronous, node_registration, time_budget
from heterofl_flwr.transport import exchange
from tests.core import twin
from tests.federation import test_sharing
from tests.federation.tiny import Keep, Watched, add_one, build, crash, equal, make_app, play
from tests.hostile.superlink import Clock

FAST = DeviceProfile(macs_per_second=1.0, download=1e300, upload=1e300)
MIX = "a1-b1-c1"
NODES = 9


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(exchange, "LONGEST_PAUSE", 0.01)


def on(work, **options):
    """Return what puts simulated devices on a grid; partitions take as long as ``work`` says."""
    devices = Devices({"a": FAST}, lambda kind, partition, rate, examples: work(partition), **options)
    return lambda grid: SimulatedDevices(grid, devices)


def run(asynchronous, work=lambda partition: 1.0 + partition, num_rounds=6, *, mix=MIX, nodes=NODES, **options):
    options = {"wrap": on(work), **options}
    return play(mix=mix, nodes=nodes, num_rounds=num_rounds, asynchronous=asynchronous, **options)


def sent_by(grid):
    """Return the instructions to train in the order sent: the step, the partition, the rate."""
    configs = [message.content["config"] for message in grid.of("train")]
    return [(config["server-round"], config["partition"], config["rate"]) for config in configs]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": "examples"},
        {"upload": "int8"},
        {"labels": "none", "fidelity": Fidelity.of("fixed")},
        {"assignment": "dynamic", "evaluation": Evaluation()},
        {"stages": [Momentum(server_momentum=0.5)]},
        {"shared": ("hidden.*",)},
    ],
    ids=str,
)
def test_equal_devices_that_all_count_train_as_in_rounds(options):
    def labelled(message, context):
        return add_one(message, context, labels=[context.node_config["partition-id"] % 4])

    app = make_app(test_sharing.train, test_sharing.judge) if "shared" in options else make_app(labelled)
    waiting = play(app, MIX, 6, 3, fraction_train=0.5, **options)
    for wrap in (None, on(lambda partition: 1.0)):
        stages = [Momentum(server_momentum=0.5)] if "stages" in options else []
        own = {**options, "stages": stages, "app": app, "wrap": wrap}
        found = run(Buffered(size=3, concurrency=3), nodes=6, num_rounds=3, **own)
        assert equal(found.state, waiting.state)
        assert [own.rates for own in found.records] == [own.rates for own in waiting.records]
        assert [own.train for own in found.records] == [{**own.train, "staleness": 0.0} for own in waiting.records]
        assert [own.evaluate for own in found.records] == [own.evaluate for own in waiting.records]
        assert [own.bytes_by_level for own in found.records] == [own.bytes_by_level for own in waiting.records]


def slow_run(architecture, sent, steps, work, num_rounds):
    """Return the model, the ages by step, and the seconds of each, one event and one entry at a time."""
    model = {name: own.double().numpy() for name, own in architecture.initial_state().items()}
    models, clocks = [model], [{name: np.zeros_like(own) for name, own in model.items()}]
    now, training, order, ages, seconds = 0.0, [], list(sent), [], []
    for step in range(1, num_rounds + 1):
        buffer, began = [], now
        while len(buffer) < steps.size:
            while len(training) < steps.concurrency and order and order[0][0] == step:
                training.append((now + work(order[0][1]), len(sent) - len(order), *order.pop(0)))
            now = max(now, min(training)[0])
            arrived = sorted(own for own in training if own[0] <= now)[: steps.size - len(buffer)]
            buffer += arrived
            training = [own for own in training if own not in arrived]
        replies = [
            (architecture.plan(rate), version - 1, 1, lambda *_, own=partition: 1 + own)
            for _, _, version, partition, rate in buffer
        ]
        twin.stale_step(replies, models, clocks, exponent=steps.staleness, one_clock=steps.clocks == "model")
        ages.append(sorted(step - version for _, _, version, *_ in buffer))
        seconds.append(now - began)
    return models[-1], ages, seconds


@pytest.mark.parametrize(
    "steps",
    [
        Buffered(size=2, concurrency=5),
        Buffered(size=3, concurrency=7, staleness=1.0),
        Buffered(size=2, concurrency=6, clocks="model"),
        Buffered(size=1, concurrency=4),
    ],
    ids=str,
)
def test_models_clocks_and_times_are_the_slow_twins(steps):
    def work(partition):
        return (1.0, 0.25, 7.0, 2.5)[partition % 4]

    found = run(steps, work, num_rounds=8)
    federation = found.federation
    model, ages, seconds = slow_run(federation.architecture, sent_by(found.grid), steps, work, 8)
    for name, own in model.items():
        np.testing.assert_allclose(found.state[name].numpy(), own, atol=1e-4, err_msg=name)
    assert [record.simulated_seconds for record in found.records] == pytest.approx(seconds)
    assert max(map(max, ages)) > 1
    for record, own in zip(found.records, ages, strict=True):
        assert len(record.rates) == steps.size
        if len(set(own)) == 1:
            assert record.train["staleness"] == own[0]


def test_a_metric_of_the_clients_named_staleness_is_recorded_beside_the_servers():
    def train(message, context):
        task = Task(message, context, build)
        return task.reply(task.model(), num_examples=1, metrics={"staleness": 7.0})

    found = run(Buffered(size=2, concurrency=2), num_rounds=1, app=make_app(train), wrap=None)
    assert found.log.train == {"staleness": 7.0, "server-staleness": 0.0}


class Killed(Exception):
    """What stands for the end of the process."""


class Kill(RoundCallback):
    """Ends a run at a moment of its fourth step."""

    def __init__(self, moment):
        self.moment, self.rounds, self.saved = moment, 0, []

    def on_reply(self, what, done, asked, failed):
        if self.moment == "within" and self.rounds == 3 and done == 1:
            raise Killed

    def on_round_end(self, progress):
        self.rounds += 1
        if self.rounds == 4 and self.moment == "after":  # the step is done, and not saved
            raise Killed
        self.saved.append(progress)
        if self.rounds == 3 and self.moment == "before":
            raise Killed
        return False


@pytest.fixture(scope="module")
def uninterrupted():
    """Return a run of six steps."""
    return run(Buffered(size=2, concurrency=5))


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_a_killed_run_goes_on_with_nothing_lost_or_twice(moment, uninterrupted):
    steps, kill = Buffered(size=2, concurrency=5), Kill(moment)
    with pytest.raises(Killed):
        run(steps, callbacks=[kill])
    state = kill.saved[-1]
    assert state.server_round == 3
    assert equal(state.state, dict(uninterrupted.progress[2].state))
    out = state.stages["Asynchronous/training"].tolist()
    assert len(out) == 3  # as the two that answered are not replaced yet
    keep = Keep()
    again = run(steps, num_rounds=6, callbacks=[keep], start={"resume": state})
    sent = [(step, partition) for step, partition, _ in sent_by(again.grid)]
    assert sent[:3] == [(4, partition) for partition in out]  # who was out is asked again
    assert [record.server_round for record in keep.records] == [4, 5, 6]
    assert all(len(record.rates) == 2 for record in keep.records)
    assert len(sent) == len(set(sent))
    assert len(sent) in (3 * 2 + 3, 3 * 2 + 4)
    expected, *_ = slow_run_from(state, again, steps)
    for name, own in expected.items():
        np.testing.assert_allclose(again.state[name].numpy(), own, atol=1e-4, err_msg=name)


def slow_run_from(state, found, steps):
    """Return what the twin makes of a run that goes on: it counts each reply of the steps that are left once."""

    class Begun:
        initial_state = staticmethod(lambda: state.state)
        plan = found.architecture.plan

    sent = [(step - state.server_round, *rest) for step, *rest in sent_by(found.grid)]
    return slow_run(Begun, sent, steps, lambda partition: 1.0 + partition, 3)


def silent(*partitions, **options):
    """Return a grid type on which these partitions never answer an instruction to train."""

    def lost(grid, message):
        return message.metadata.message_type == "train" and grid.partition_of(message) in partitions

    return partial(Watched, lost=lost, **options)


class Ticks(Clock):
    def sleep(self, seconds):
        super().sleep(max(seconds, 1e-3))  # less may be rounded away, and the time would stand still


@pytest.fixture
def clock(monkeypatch):
    """Let time pass only while nobody replies, so that the speed of the machine decides nothing."""
    clock = Ticks()
    for module in (asynchronous, exchange, node_registration, time_budget):
        monkeypatch.setattr(module, "time", clock)


@pytest.mark.usefixtures("clock")
class TestWhoIsLost:
    def test_a_client_that_fails_is_replaced_at_once_and_progress_counts_what_is_in_the_step(self):
        found = run(Buffered(size=3, concurrency=3), num_rounds=3, app=make_app(odd={0: crash, 4: crash}))
        assert all(len(record.rates.keys() - record.failures.keys()) == 3 for record in found.records)
        assert sum(len(record.failures) for record in found.records) > 0
        assert [reply[1:3] for reply in found.replies] == [(1, 3), (2, 3), (3, 3)] * 3

    def test_silent_clients_are_replaced_within_a_step_and_put_off(self):
        # More silent clients than places: without their replacement a step has nobody who trains.
        options = {"mix": "a1", "nodes": 12, "grid": silent(0, 1, 2), "wrap": None}
        found = run(Buffered(size=2, concurrency=2), num_rounds=12, start={"timeout": 2.0}, **options)
        answered = [set(record.rates) - set(record.failures) for record in found.records]
        assert [len(partitions) for partitions in answered] == [2] * 12
        sent = [partition for _, partition, _ in sent_by(found.grid) if partition < 3]
        assert sorted(sent) == [0, 1, 2]  # each of the silent ones once

    def test_where_most_are_silent_they_are_named_and_the_others_go_on(self):
        options = {"mix": "a1", "nodes": 4, "grid": silent(1, 2, 3), "wrap": None}
        found = run(Buffered(size=3, concurrency=3), num_rounds=3, start={"timeout": 0.5}, **options)
        assert [set(record.rates) - set(record.failures) for record in found.records] == [{0}] * 3
        assert {reason for record in found.records[1:] for reason in record.failures.values()} == {"no reply in time"}
        assert len({record.bytes_down / len(record.rates) for record in found.records}) == 1  # the silent received too

    @pytest.mark.parametrize("min_replies", ["auto", 0.5, 1])
    def test_where_all_still_train_the_error_says_how_to_give_more_time(self, min_replies):
        options = {"mix": "a1", "nodes": 2, "grid": silent(0, 1), "wrap": None}
        options |= {"start": {"timeout": 0.2}, "min_replies": min_replies}
        with pytest.raises(AggregationError, match=rf"round 1: .* at least 1: give .* which is {min_replies}\)$"):
            run(Buffered(size=1, concurrency=2), num_rounds=1, **options)

    def test_a_silent_level_keeps_no_seat(self):
        options = {"mix": "a1-c1", "nodes": 4, "grid": silent(0, 1), "wrap": None}
        found = run(Buffered(size=2, concurrency=4, quota=1), num_rounds=1, start={"timeout": 2.0}, **options)
        assert set(found.log.rates) == {2, 3}

    def test_a_message_that_cannot_be_sent_is_a_failure(self):
        class Full(Watched):
            def push_messages(self, messages):
                messages = list(messages)
                train = messages[0].metadata.message_type == "train"
                refused = [train and self.partition_of(message) == 2 for message in messages]
                ids = iter(super().push_messages([own for own, no in zip(messages, refused, strict=True) if not no]))
                return ["" if no else next(ids) for no in refused]

        found = run(Buffered(size=2, concurrency=3), num_rounds=1, mix="a1", nodes=3, grid=Full, wrap=None)
        assert found.log.failures == {2: "the message could not be sent"}
        assert set(found.log.rates) == {0, 1, 2}

    def test_of_a_node_that_is_gone_nothing_is_waited_for(self):
        gone = []

        class Leave(RoundCallback):
            def on_round_end(self, progress):
                gone.append(progress)

        grid = silent(0, present=lambda grid, ids: ids[1:] if gone else ids[:-1])
        options = {"mix": "a1", "nodes": 5, "grid": grid, "wrap": None, "callbacks": [Leave()]}
        found = run(Buffered(size=2, concurrency=4), num_rounds=3, **options)
        assert found.log.server_round == 3
        assert 0 not in found.federation.nodes.trained


@pytest.mark.usefixtures("clock")
def test_the_wait_for_nodes_takes_no_time_of_the_step(monkeypatch):
    looks = count()
    grid = partial(Watched, present=lambda grid, ids: ids if next(looks) else ids[:1])
    monkeypatch.setattr(node_registration, "POLL_SECONDS", 1.5)
    found = run(Buffered(size=2, concurrency=2), num_rounds=1, grid=grid, wrap=None, start={"timeout": 1.0})
    assert len(found.log.rates) == 2


def test_a_step_names_the_nodes_that_replied_and_none_that_still_trains():
    names, options = ("w", "x", "y", "z"), {"asynchronous": Buffered(size=1, concurrency=3)}
    for record in play(make_app(), "a1", 4, 3, grid=partial(Watched, names=names), **options).records:
        assert len(record.rates) == 1
        assert record.names == {partition: names[partition] for partition in record.rates}
        assert (record.answered, record.expected) == (1, 1)


def test_a_reply_beyond_the_bound_is_dropped_and_is_no_failure_of_its_client(caplog):
    steps = Buffered(size=1, concurrency=3, bound=2, clocks="model")
    found = run(steps, lambda partition: 20.0 if partition == 0 else 1.0, 50, mix="a1-c3", nodes=4)
    (dropped,) = [record for record in found.records if 0 in record.rates]
    assert dropped.failures == {0: "38 steps stale, expected up to 2 (asynchronous.bound)"}
    assert (dropped.refused, dropped.notes) == ((0,), ())
    assert "could train" not in caplog.text
    assert len(found.grid.of("query.capability")) == 4  # nobody is asked again


def test_slow_levels_keep_their_seats():
    def work(partition):
        return 9.0 if partition < 3 else 1.0  # of nine clients, three have level a

    free, kept = (run(Buffered(size=3, concurrency=9, quota=quota), work, 6).records for quota in (0, 1))
    assert any(1.0 not in record.rates.values() for record in free)
    assert all(set(record.rates.values()) == {1.0, 0.5, 0.25} for record in kept)


def test_a_reply_that_waits_for_another_level_does_not_wait_for_its_own():
    def work(partition):
        return (1.0, 2.0, 3.0, 90.0, 4.0)[partition]

    record = run(Buffered(size=4, concurrency=5, quota=2), work, 1, mix="a4-b1", nodes=5).log
    assert record.rates == {0: 1.0, 1: 1.0, 2: 1.0, 4: 0.5}
    assert record.simulated_seconds == 4


def test_real_time_changes_nothing_on_simulated_devices(monkeypatch):
    def work(partition):
        return 50.0 if partition == 0 else 1.0 + partition

    steps, keep = Buffered(size=1, concurrency=3), Keep()
    quick = run(steps, work, 20)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * len(keep.progress))
    monkeypatch.setattr(asynchronous, "time", clock)
    slow = run(steps, work, 20, callbacks=[keep])
    assert sent_by(slow.grid) == sent_by(quick.grid)
    assert equal(slow.state, quick.state)


class Saves(HeteroFL):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, replies)


def test_a_hook_that_would_not_be_called_is_named():
    with pytest.raises(
        ConfigError, match=r"Saves overrides aggregate_train, which .*training=Training\(learning_rate=...\) for a"
    ):
        play(kind=Saves, asynchronous=Buffered(size=2, concurrency=3))


def test_levels_that_train_parts_beside_each_other_need_one_clock():
    exits = with_exits(build_model("cnn", classes=4, hidden=(4, 4), norm="gn"), deepest_only=True)
    depths = shallow(exits, "exits.*", None)
    with pytest.raises(ConfigError, match=r"train different parts of the model, .* or clocks='model'"):
        HeteroFL(depths, "a1-b1", asynchronous=Buffered(size=2, concurrency=2))
    HeteroFL(depths, "a1-b1", asynchronous=Buffered(size=2, concurrency=2, clocks="model"))
