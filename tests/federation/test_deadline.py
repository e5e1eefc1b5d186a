"""A round's deadline, which training, moments and evaluation share; clients that a subclass leaves out of a round."""

import torch

from heterofl_flwr import Evaluation, HeteroFL, LocalGrid, exchange, messages
from tests.federation.tiny import NEVER, build, build_normed, make_app
from tests.hostile.superlink import Clock

SECONDS = 6.0


class Withholding(LocalGrid):
    """A grid whose first node trains just in time, and then withholds all that it is asked for."""

    def __init__(self, clock):
        super().__init__(make_app(build=build_normed), 4)
        self.clock, self.asked = clock, []

    def send_and_receive(self, sent, *, timeout=None):
        sent = list(sent)
        kinds = {own.metadata.message_type for own in sent if own.metadata.dst_node_id == self.get_node_ids()[0]}
        self.asked += sorted(kinds)
        if kinds & {messages.QUERY_MOMENTS, "evaluate"}:
            self.clock.sleep(timeout)
            sent = [own for own in sent if own.metadata.dst_node_id != self.get_node_ids()[0]]
        elif "train" in kinds:
            self.clock.sleep(0.99 * timeout)
        return super().send_and_receive(sent, timeout=None)


def test_no_node_holds_a_round_beyond_its_deadline(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(exchange, "time", clock)
    with Withholding(clock) as grid:
        strategy = HeteroFL(build_normed, "a1-b1", evaluation=Evaluation(nodes="all"))
        strategy.start(grid, num_rounds=2, timeout=SECONDS)
        assert clock.now <= 2 * SECONDS
        assert grid.asked == [messages.QUERY_CAPABILITY, *2 * ["train", messages.QUERY_MOMENTS]]
    assert strategy.log.evaluate_answers == 3
    assert list(strategy.log.evaluate_failures.values()) == ["no usable moments: no reply in time"]


class SendsFewer(HeteroFL):
    def configure_train(self, *args):
        return super().configure_train(*args)[:1]

    def configure_evaluate(self, *args):
        return super().configure_evaluate(*args)[:1]


def test_clients_that_a_subclass_leaves_out_are_no_fault():
    with LocalGrid(make_app(), 5) as grid:
        strategy = SendsFewer(build, "a1", evaluation=Evaluation(nodes="all"))
        result = strategy.start(grid, num_rounds=2)
    log = strategy.log
    assert (log.failures, log.evaluate_failures) == ({}, {})
    assert log.rates == {0: 1.0}
    assert (log.evaluate_answers, log.evaluate_asked) == (1, 1)
    change = result.arrays.to_torch_state_dict()["hidden.bias"] - strategy.federation.initial_state()["hidden.bias"]
    torch.testing.assert_close(change, torch.full((8,), 2.0))  # client 0 adds 1 in each round


def test_without_evaluation_training_has_all_of_the_time():
    given = []

    class Noted(LocalGrid):
        def send_and_receive(self, sent, *, timeout=None):
            given.append(timeout)
            return super().send_and_receive(sent, timeout=timeout)

    for evaluation in (NEVER, Evaluation()):
        with Noted(make_app(), 2) as grid:
            HeteroFL(build, "a1", evaluation=evaluation).start(grid, num_rounds=1, timeout=60.0)
    assert (given[1], given[3]) == (60.0, 48.0)
    assert 0 < given[4] <= 60.0
