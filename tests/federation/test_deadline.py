"""A round's deadline, for which replies it waits, how many it needs, and clients that a subclass leaves out."""

import re
import time
from itertools import islice
from traceback import format_exception

import pytest
import torch
from flwr.app import ArrayRecord, Message

from heterofl_flwr import DeviceProfile, Devices, Evaluation, HeteroFL, LocalGrid, RoundCallback, SimulatedDevices
from heterofl_flwr.common.errors import ConfigError, RoundError
from heterofl_flwr.federation.sampling import Participation
from heterofl_flwr.strategies import time_budget
from heterofl_flwr.transport import exchange, messages
from heterofl_flwr.transport.arrays import count_bytes
from tests.federation.tiny import NEVER, Watched, build, build_normed, crash, make_app, play
from tests.hostile.superlink import Clock

SECONDS = 6.0


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (exchange, time_budget):
        monkeypatch.setattr(module, "time", clock)
    return clock


class Withholding(Watched):
    """A grid whose clients train just in time. Its first node withholds other answers, and all nodes those of a kind.

    ``asked`` has the kinds of messages to the first node.
    """

    def __init__(self, clock, model, late="", **handlers):
        super().__init__(make_app(build=model, **handlers), 4)
        self.clock, self.late, self.asked = clock, late, []

    def send_and_receive(self, sent, *, timeout=None):
        sent = list(sent)
        withheld = [message for message in sent if self.withholds(message)]
        self.asked += {message.metadata.message_type for message in sent if self.partition_of(message) == 0}
        if withheld or any(message.metadata.message_type == "train" for message in sent):
            self.clock.sleep(timeout if withheld else 0.99 * timeout)
        return super().send_and_receive([message for message in sent if message not in withheld])

    def withholds(self, message):
        kind, is_first = message.metadata.message_type, self.partition_of(message) == 0
        return kind == self.late or (is_first and kind in (messages.QUERY_MOMENTS, "evaluate"))


@pytest.mark.parametrize(
    ("model", "withheld", "fault"),
    [
        (build_normed, messages.QUERY_MOMENTS, "no usable moments: no reply in time"),
        (build, "evaluate", "no reply in time"),
    ],
)
def test_no_node_holds_a_round_beyond_its_deadline(clock, model, withheld, fault):
    with Withholding(clock, model) as grid:
        strategy = HeteroFL(model, "a1-b1", evaluation=Evaluation(nodes="all"))
        strategy.start(grid, num_rounds=2, timeout=SECONDS)
        assert clock.now <= 2 * SECONDS
        assert grid.asked == [messages.QUERY_CAPABILITY, *2 * ["train", withheld]]
    assert strategy.log.evaluate_answers == 3
    assert list(strategy.log.evaluate_failures.values()) == [fault]


def test_where_nobody_trains_in_time_the_error_says_how_to_give_more(clock):
    text = r"0 of 4 clients gave a usable reply, expected at least 2: give rounds more time \(engine\.timeout"
    with Withholding(clock, build, "train") as grid, pytest.raises(RoundError, match=text) as info:
        HeteroFL(build, "a1-b1").start(grid, num_rounds=1, timeout=SECONDS)
    assert len(re.findall(text, "".join(format_exception(info.value)))) == 1  # Flower's log has the whole traceback


def test_where_nobody_has_moments_in_time_the_round_keeps_its_model_without_an_evaluation(clock, caplog):
    strategy = HeteroFL(build_normed, "a1-b1", evaluation=Evaluation(nodes="all"))
    with Withholding(clock, build_normed, messages.QUERY_MOMENTS) as grid:
        result = strategy.start(grid, num_rounds=1, timeout=SECONDS)
    assert "none of 4 nodes gave usable static batch norm moments: give rounds more time (engine.timeout" in caplog.text
    assert len(strategy.log.evaluate_failures) == 4
    before = strategy.federation.architecture.initial_state()["hidden.bias"]
    assert not torch.equal(result.arrays.to_torch_state_dict()["hidden.bias"], before)


def test_a_client_without_moments_ends_no_run_in_which_others_may_have_some(clock, caplog):
    class OneAnswers(Withholding):
        def withholds(self, message):
            return super().withholds(message) and self.partition_of(message) != 1

    strategy = HeteroFL(build_normed, "a1-b1", evaluation=Evaluation(nodes="all"))
    with OneAnswers(clock, build_normed, messages.QUERY_MOMENTS, moments=crash) as grid:
        strategy.start(grid, num_rounds=1, timeout=SECONDS)
    assert "give rounds more time (engine.timeout" in caplog.text
    assert "partition 1: error 2: RuntimeError: the disk is full" in caplog.text


def test_moments_are_asked_again_after_a_round_in_which_they_came_too_late(clock):
    class InTimeFromNowOn(RoundCallback):
        def on_round_end(self, progress):
            grid.late = None

    strategy = HeteroFL(build_normed, "a1", evaluation=Evaluation(nodes="all"), callbacks=[InTimeFromNowOn()])
    with Withholding(clock, build_normed, messages.QUERY_MOMENTS) as grid:
        strategy.start(grid, num_rounds=2, timeout=SECONDS)
    assert set(strategy.moments) == {1.0}
    assert strategy.log.evaluate_answers == 3  # the grid withholds one client


class SendsFewer(HeteroFL):
    def configure_train(self, *args):
        return super().configure_train(*args)[:1]

    def configure_evaluate(self, *args):
        return super().configure_evaluate(*args)[:1]


class DropsReplies(HeteroFL):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, list(replies)[:1])

    def aggregate_evaluate(self, server_round, replies):
        return super().aggregate_evaluate(server_round, list(replies)[:1])


def slice_bytes():
    return count_bytes(ArrayRecord(dict(build(1.0).named_parameters())))


class SendsItsOwn(DropsReplies):
    def configure_train(self, *args):
        sent = super().configure_train(*args)
        return [Message(own.content, own.metadata.dst_node_id, own.metadata.message_type) for own in sent]


@pytest.mark.parametrize("kind", [SendsFewer, DropsReplies, SendsItsOwn])
def test_clients_that_a_subclass_leaves_out_are_no_fault(kind):
    found = play(kind=kind, nodes=5, num_rounds=2, evaluation=Evaluation(nodes="all"))
    log = found.log
    assert (log.failures, log.evaluate_failures) == ({}, {})
    asked = 1 if kind is SendsFewer else 5  # whose message was dropped got nothing; dropped replies were sent
    assert list(log.rates) == list(range(asked))
    assert log.bytes_down == log.bytes_by_level["a"] == log.bytes_up == asked * slice_bytes()
    assert log.answered == 1
    assert (log.evaluate_answers, log.evaluate_asked) == (1, 1)
    change = found.state["hidden.bias"] - found.before["hidden.bias"]
    torch.testing.assert_close(change, torch.full((8,), 2.0))  # client 0 adds 1 in each round


@pytest.mark.parametrize("taken", [0, 1])
def test_replies_that_a_subclass_does_not_wait_for_are_no_fault(taken):
    class EndsEarly(HeteroFL):
        def aggregate_train(self, server_round, replies):
            return super().aggregate_train(server_round, list(islice(replies, taken)))

    log = play(kind=EndsEarly).log
    assert (log.failures, log.answered) == ({}, taken)


class DropsErrors(HeteroFL):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, [reply for reply in replies if not reply.has_error()])


class ReadsAll(HeteroFL):
    def aggregate_train(self, server_round, replies):
        assert all(reply.has_content() for reply in replies)
        return super().aggregate_train(server_round, replies)


def test_an_error_that_a_subclass_drops_is_a_failure_nonetheless():
    log = play(make_app(odd={1: crash}), nodes=4, kind=DropsErrors).log
    assert list(log.failures) == [1]
    assert "the disk is full" in log.failures[1]


class ReadsOne(HeteroFL):
    def aggregate_train(self, server_round, replies):
        assert next(iter(replies)).has_content()
        return super().aggregate_train(server_round, replies)


@pytest.mark.parametrize(("kind", "number"), [(ReadsAll, 3), (ReadsOne, 1)])
def test_a_subclass_that_reads_the_replies_first_learns_how(kind, number):
    with pytest.raises(ConfigError, match=rf"replies \({number}\) were read before"):
        play(kind=kind)


def test_without_evaluation_training_has_all_of_the_time():
    given = []

    class Noted(LocalGrid):
        def send_and_receive(self, sent, *, timeout=None):
            given.append(timeout)
            return super().send_and_receive(sent, timeout=timeout)

    for evaluation in (NEVER, Evaluation()):
        with Noted(make_app(), 2) as grid:
            HeteroFL(build, "a1", evaluation=evaluation).start(grid, num_rounds=1, timeout=60.0)
    assert 48.0 < given[1] <= 60.0
    assert 36.0 < given[3] <= 48.0
    assert 0 < given[4] <= 60.0


class Late(Watched):
    """A grid of which some nodes answer an instruction to train late, counted in looks for replies; or never."""

    def __init__(self, app, num_nodes, late, **kwargs):
        super().__init__(app, num_nodes, **kwargs)
        self._late = dict(late)
        self.looks = 0
        self.dropped = []

    def pull_messages(self, message_ids):
        asked = [message for message in self.sent if message.metadata.message_id in message_ids]
        if {message.metadata.message_type for message in asked} != {"train"}:
            return super().pull_messages(message_ids)
        self.looks += 1
        here = [own for own in asked if self.looks > self._late.get(self.partition_of(own), 0)]
        return super().pull_messages([message.metadata.message_id for message in here])

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        if messages[0].metadata.message_type == "train":
            messages = [message for message in messages if self.partition_of(message) not in self._late]
        return super().send_and_receive(messages, timeout=timeout)

    def cancel(self, message_ids):
        self.dropped += list(message_ids)
        super().cancel(message_ids)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(exchange, "LONGEST_PAUSE", 0.01)


def run(app=None, nodes=4, late=None, seconds=30, **options):
    def grid(app, nodes, node_config):
        return Watched(app, nodes) if late is None else Late(app, nodes, late)

    found = play(
        app, nodes=nodes, grid=grid, start={"timeout": seconds}, **{"fraction_train": 0.75, "spare": 0.3} | options
    )
    found.change = found.state["hidden.bias"] - found.before["hidden.bias"]
    return found


@pytest.mark.parametrize(
    ("share", "spare", "asked"),
    [(0.5, 0.0, 4), (0.13, 0.0, 2), (0.001, 0.0, 1), (0.5, 0.5, 6), (0.5, 0.1, 5), (0.125, 1.0, 2)],
)
def test_shares_are_rounded_up_and_the_spare_one_is_of_those_that_are_needed(share, spare, asked):
    sampling = Participation(fraction=share, spare=spare)
    assert sampling.with_spare(sampling.number(8, "train")) == asked


def test_a_round_ends_as_soon_as_enough_have_answered():
    found = run(late={0: 3, 2: 10**9})
    assert found.grid.looks == 4  # at once those of 1 and 3, with the fourth look that of 0
    assert found.log.failures == {}  # nobody waited for 2
    assert len(found.grid.dropped) == 1
    # Clients add 1 more than their partition: 0, 1 and 3 count, in the order of the messages.
    torch.testing.assert_close(found.change, torch.full((8,), (1 + 2 + 4) / 3))


def test_an_error_is_no_answer_that_is_waited_for():
    found = run(make_app(odd={1: crash}), late={0: 2})
    assert list(found.log.failures) == [1]
    torch.testing.assert_close(found.change, torch.full((8,), (1 + 3 + 4) / 3))


def test_a_round_with_spare_clients_waits_for_the_replies_that_it_needs():
    found = run(late={0: 3, 2: 3}, fraction_train=0.5, spare=1.0, min_replies=4)
    assert (found.log.answered, found.log.failures, found.log.spared) == (4, {}, ())
    found = run(late={0: 3, 2: 3}, fraction_train=0.5, spare=1.0)
    assert (found.log.answered, found.log.failures, sorted(found.log.spared)) == (2, {}, [0, 2])


def test_a_round_ends_at_its_deadline_when_enough_never_come():
    began = time.monotonic()
    found = run(late={0: 10**9, 1: 10**9}, seconds=0.5)
    assert 0.5 <= time.monotonic() - began < 120
    assert found.log.failures == dict.fromkeys((0, 1), "no reply in time")


def test_a_round_ends_at_once_when_all_have_answered_with_errors():
    with pytest.raises(RoundError, match="0 of 3 clients gave a usable reply"):
        run(make_app(crash), fraction_train=0.5, spare=0.5)


def test_who_did_not_answer_in_time_is_not_asked_to_evaluate():
    found = run(late={2: 10**9}, fraction_train=1.0, spare=0.0, evaluation=Evaluation())
    assert [found.grid.partition_of(message) for message in found.grid.of("evaluate")] == [0, 1, 3]
    assert found.log.evaluate["coverage"] == 0.75
    assert (found.log.evaluate_answers, found.log.evaluate_asked) == (3, 4)


SPARE = {"fraction_train": 0.5, "spare": 1.0}  # of eight clients, four are needed and eight are asked


@pytest.mark.parametrize(
    ("nodes", "crashing", "least", "options"),
    [
        *((*own, {}) for own in ((4, 3, 2), (3, 2, 2), (5, 3, 3))),  # at least half
        *((*own, None, {}) for own in ((4, 2), (3, 1), (5, 2), (2, 1), (1, 0))),
        *((10, *own, {"min_replies": 0.8}) for own in ((2, None), (3, 8))),  # of those that are asked
        *((8, *own, SPARE) for own in ((6, None), (7, 2))),  # of those that are needed
    ],
)
def test_a_round_needs_a_share_of_the_replies(nodes, crashing, least, options):
    app = make_app(odd=dict.fromkeys(range(nodes - crashing, nodes), crash))
    options = {"nodes": nodes, "min_available_nodes": 1, **options}
    if least is None:
        assert len(play(app, **options).log.failures) == crashing
        return
    said = f"round 1: {nodes - crashing} of {nodes} clients gave a usable reply, expected at least {least}"
    with pytest.raises(RoundError, match=rf"{said}.*partition {nodes - crashing} and {crashing - 1} more: error 2: "):
        play(app, **options)


def simulated(crashing, **options):
    """Return the record of a round in which partition p takes p + 1 seconds; three of six come in time."""
    profile = DeviceProfile(macs_per_second=1.0, download=1e12, upload=1e12)
    devices = Devices({"a": profile}, lambda kind, partition, rate, examples: 1.0 + partition, deadline=3.5)
    app = make_app(odd=dict.fromkeys(range(crashing), crash))
    return play(app, nodes=6, wrap=lambda grid: SimulatedDevices(grid, devices), **options).log


def test_what_simulated_devices_lose_does_not_count_as_asked():
    assert sorted(simulated(0).failures) == [3, 4, 5]
    assert sorted(simulated(1).failures) == [0, 3, 4, 5]
    with pytest.raises(RoundError, match="1 of 6 clients gave a usable reply, expected at least 2"):
        simulated(2)
