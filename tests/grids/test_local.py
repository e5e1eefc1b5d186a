"""``LocalGrid``: Flower's interface, errors as replies, state, isolation, identity."""

import threading
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr.common.errors import ConfigError, HeteroFLError
from heterofl_flwr.grids import LocalGrid, Windowed, local, queued
from heterofl_flwr.transport import compat, exchange
from heterofl_flwr.transport.compat import SUPERLINK_NODE_ID, Run


def test_node_ids_depend_on_the_seed_alone():
    def ids(seed, nodes=3):
        with LocalGrid(ClientApp(), nodes, seed=seed) as grid:
            return list(grid.get_node_ids())

    assert ids(0) == ids(0) != ids(1)
    assert ids(0, 5)[:3] == ids(0)
    assert len({*ids(0), *ids(1), SUPERLINK_NODE_ID}) == 7


def test_nodes_messages_and_runs_are_flowers(grid, ask):
    node_id, *_ = ids = [node.node_id for node in compat.get_nodes(grid)]
    assert ids == list(grid.get_node_ids())
    message = grid.create_message(RecordDict(), "query.configs", node_id, "7", ttl=5.0)
    assert (message.metadata.dst_node_id, message.metadata.group_id, message.metadata.ttl) == (node_id, "7", 5.0)
    for run_id in (8, 9):
        grid.set_run(Run.create_empty(run_id))  # every node begins it with an empty state
        (reply,) = grid.send_and_receive([ask(node_id, "count")])
        assert reply.content["config"]["seen"] == 1
        left = list(grid.push_messages([ask(node_id, "count")]))
    grid.set_run(Run.create_empty(9))
    assert list(grid.pull_messages(left)) == []
    assert grid.run.run_id == reply.metadata.run_id == 9


def test_clients_see_their_node_config_and_the_run_config(ask):
    def node_config(partition):
        return {"rate": 1.0 / (1 + partition), "device": "phone"}

    with LocalGrid("odd_clients:app", 2, node_config=node_config, run_config={"lr": 0.1, "data.name": "x"}) as grid:
        replies = list(grid.send_and_receive([ask(node_id, "configs") for node_id in grid.get_node_ids()]))
    assert [dict(reply.content["node"]) for reply in replies] == [
        {"partition-id": 0, "num-partitions": 2, "rate": 1.0, "device": "phone"},
        {"partition-id": 1, "num-partitions": 2, "rate": 0.5, "device": "phone"},
    ]
    assert all(dict(reply.content["run"]) == {"lr": 0.1, "data.name": "x"} for reply in replies)


def test_a_trace_of_many_clients_that_differs_in_numbers_alone_is_logged_once(grid, ask, caplog):
    actions = ("configs", "fail", "fail", "configs")
    for _ in range(2):
        messages = [ask(node_id, action) for node_id, action in zip(grid.get_node_ids(), actions, strict=True)]
        assert [reply.has_error() for reply in grid.send_and_receive(messages)] == [False, True, True, False]
    assert caplog.text.count("Traceback") == 1
    assert "partition 1 failed to answer" in caplog.text
    assert "odd_clients.py" in caplog.text


def test_an_interrupt_ends_the_call_and_leaves_nothing_behind(ask):
    app = ClientApp()

    @app.query("interrupt")
    def interrupt(message, context):
        raise KeyboardInterrupt

    with LocalGrid(app, 1) as grid:
        message = ask(next(iter(grid.get_node_ids())), "interrupt")
        with pytest.raises(KeyboardInterrupt):
            grid.send_and_receive([message])
        assert list(grid.pull_messages([message.metadata.message_id])) == []


@pytest.fixture
def noting():
    """Return an app, and the partitions that it has run."""
    ran = []
    app = ClientApp()

    @app.query("note")
    def note(message, context):
        ran.append(context.node_config["partition-id"])
        return Message(RecordDict(), reply_to=message)

    return app, ran


def test_clients_run_when_their_replies_are_pulled(ask, noting):
    app, ran = noting
    with LocalGrid(app, 3) as grid:
        ids = list(grid.push_messages([ask(node_id, "note") for node_id in grid.get_node_ids()]))
        assert ran == []
        assert len(list(grid.pull_messages(ids[1:2]))) == 1
        assert ran == [1]
        replies = list(grid.pull_messages({*ids, "unknown"}))
        assert ran == [1, 0, 2]  # a set has no order; the messages have
        assert {reply.metadata.reply_to_message_id for reply in replies} == {ids[0], ids[2]}
        assert list(grid.pull_messages(ids)) == []


@pytest.mark.parametrize("window", [None, 4])
def test_clients_not_begun_at_the_timeout_are_left_out(ask, noting, monkeypatch, window):
    app, ran = noting
    for module in (local, queued, exchange):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: len(ran)))  # a second for each client
    with LocalGrid(app, 4) as grid:
        messages = [ask(node_id, "note") for node_id in grid.get_node_ids()]
        replies = list((Windowed(grid, window) if window else grid).send_and_receive(messages, timeout=2))
        ids = [message.metadata.message_id for message in messages]
        assert [reply.metadata.reply_to_message_id for reply in replies] == ids[:2]
        assert list(grid.pull_messages(ids)) == []
    assert ran == [0, 1]


def test_threads_may_ask_at_the_same_time(grid, ask):
    seen = []

    def once(node_id):
        seen.extend(reply.content["config"]["seen"] for reply in grid.send_and_receive([ask(node_id, "count")]))

    threads = [threading.Thread(target=once, args=(node_id,)) for node_id in list(grid.get_node_ids()) * 5]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted([*range(1, 6)] * 4)


def test_torch_uses_one_thread_in_a_client_alone():
    app, before, seen = ClientApp(), torch.get_num_threads(), []

    @app.query()
    def query(message, context):
        seen.append(torch.get_num_threads())
        return Message(RecordDict(), reply_to=message)

    torch.set_num_threads(2)
    try:
        with LocalGrid(app, 1) as grid:
            grid.send_and_receive([Message(RecordDict(), next(iter(grid.get_node_ids())), "query")])
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_of_several_open_grids_each_sends_messages_of_its_own_run(ask):
    first, second = (LocalGrid("odd_clients:app", 1, seed=seed) for seed in (1, 2))
    second.close()
    with first:
        (reply,) = first.send_and_receive([ask(next(iter(first.get_node_ids())), "count")])
    assert (reply.metadata.run_id, reply.metadata.dst_node_id) == (first.run.run_id, SUPERLINK_NODE_ID)


def test_messages_to_a_closed_grid_or_to_unknown_nodes_raise(ask):
    with LocalGrid("odd_clients:app", 1) as grid:
        message = ask(next(iter(grid.get_node_ids())), "configs")
        with pytest.raises(ConfigError, match="goes to node 12; expected one of this grid's 1 nodes"):
            grid.push_messages([ask(12, "configs")])
    grid.close()  # again
    with pytest.raises(HeteroFLError, match="closed"):
        grid.send_and_receive([message])


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num_nodes": 0}, "num_nodes is 0; expected an integer of 1 or more"),
        *(({"client_app": own}, "client_app") for own in (":app", "no_such_module:app", "odd_clients:no_such_app")),
        ({"client_app": "odd_clients:not_an_app"}, "which is int; expected a function"),
        ({"client_app": print}, "expected a ClientApp or the import path of one"),
        ({"client_app": "raises_on_import:app"}, "no data set here"),  # what the module raises is not hidden
        ({"cohort": 0}, "cohort is 0; expected an integer of 1 or more"),
        ({"node_config": {"level": "a"}}, r"expected a function, called as node_config\(partition\)"),
    ],
)
def test_invalid_arguments_raise(changes, complaint):
    arguments = {"client_app": "odd_clients:app", "num_nodes": 2, **changes}
    with pytest.raises((ConfigError, RuntimeError), match=complaint):
        LocalGrid(**arguments)
