"""``LocalGrid`` with and without worker processes, and ``RayGrid``: the same answers, whatever happens to workers."""

import gc
import os
import random
import signal
import time
import weakref
from contextlib import suppress

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from heterofl_flwr.compat import FLOWER, SUPERLINK_NODE_ID, ErrorCode
from heterofl_flwr.grids import LocalGrid, Windowed

pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. .function Popen")  # Ray's processes
WORKERS = ["processes", pytest.param("actors", marks=[pytest.mark.simulation, pytest.mark.slow])]


@pytest.fixture(params=WORKERS)
def workers(request):
    """Return a grid of four nodes and two workers, shared by a module's tests."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["grid", *WORKERS])
def any_grid(request):
    """Return a grid of four nodes, with or without workers."""
    return request.getfixturevalue(request.param)


def pids_of(grid, ask):
    messages = [ask(node_id, "process", seconds=0.1) for node_id in grid.get_node_ids()]
    return {reply.content["config"]["pid"] for reply in grid.send_and_receive(messages)}


def test_two_processes_train_the_same_bits_as_none():
    def final(processes):
        random.seed(1)  # Flower draws the order of the nodes, and so of the sum, from here
        with LocalGrid("torch_clients:app", 3, processes=processes) as grid:
            arrays = ArrayRecord({"w": torch.zeros(50_000, 1)})
            result = FedAvg(fraction_evaluate=0.0, min_train_nodes=3).start(grid, arrays, num_rounds=2)
        return result.arrays["w"].numpy(), dict(result.train_metrics_clientapp[2])

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # which must make no difference
    try:
        (inline, inline_metrics), (parallel, metrics) = final(0), final(2)
    finally:
        torch.set_num_threads(threads)
    assert inline.any()
    np.testing.assert_array_equal(inline, parallel)
    assert inline_metrics == metrics


def test_workers_last_use_one_thread_and_keep_what_their_modules_cache(workers, ask, configs):
    messages = [ask(node_id, "process", seconds=0.1) for node_id in workers.get_node_ids()]
    first, _, last = [configs(workers.send_and_receive(messages)) for _ in range(3)]
    pids = {reply["pid"] for reply in (*first, *last)}
    assert len(pids - {os.getpid()}) == len(pids) == 2
    assert sum(max(reply["answered"] for reply in last if reply["pid"] == pid) for pid in pids) >= 12
    assert {reply["OMP_NUM_THREADS"] for reply in first} == {"1"}


def test_replies_come_in_the_order_of_the_messages(any_grid, ask):
    durations = dict(zip(any_grid.get_node_ids(), (0.3, 0.0, 0.1, 0.0), strict=True))
    replies = any_grid.send_and_receive([ask(node_id, "sleep", seconds=s) for node_id, s in durations.items()])
    assert [reply.metadata.src_node_id for reply in replies] == list(durations)


def test_a_reply_names_its_message_and_its_node(any_grid, ask):
    node_id = list(any_grid.get_node_ids())[2]
    message = ask(node_id, "configs")
    (reply,) = any_grid.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id != ""
    assert reply.metadata.message_id not in ("", message.metadata.message_id)
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (node_id, SUPERLINK_NODE_ID)
    assert (reply.metadata.run_id, reply.content["node"]["partition-id"]) == (any_grid.run.run_id, 2)


@pytest.mark.skipif(FLOWER < (1, 38), reason="messages know their node when they are made from Flower 1.38")
def test_a_worker_is_its_node_for_flower(workers, ask):
    node_id = list(workers.get_node_ids())[2]
    (reply,) = workers.send_and_receive([ask(node_id, "identity")])
    assert dict(reply.content["config"]) == {"node_id": node_id, "run_id": workers.run.run_id}


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("fail", "ZeroDivisionError"),
        ("leave", "SystemExit"),
        ("silent", "returned a NoneType; expected a Message"),
        ("astray", "replies to another"),
        ("unheard_of", "No query function registered"),
    ],
)
def test_errors_are_those_of_a_grid_without_processes(workers, grid, ask, action, reason):
    def fail(on):
        (reply,) = on.send_and_receive([ask(next(iter(on.get_node_ids())), action)])
        return reply.error.code, reply.error.reason, reply.metadata.src_node_id

    code, found, _ = fail(workers)
    assert code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reason in found
    assert fail(workers) == fail(grid)


def test_state_follows_its_node_to_any_process(workers, ask):
    first, *others = workers.get_node_ids()
    seen = []
    for busy in (0, 1, 2, 3):
        ahead = [ask(node_id, "process", seconds=0.05) for node_id in others[:busy]]
        *_, reply = workers.send_and_receive([*ahead, ask(first, "count")])
        seen.append((reply.content["config"]["seen"], reply.content["config"]["pid"]))
    assert [count for count, _ in seen] == [1, 2, 3, 4]


def test_a_nodes_messages_are_answered_one_after_the_other(any_grid, ask):
    node_id = list(any_grid.get_node_ids())[1]
    replies = any_grid.send_and_receive([ask(node_id, "count", fail=i == 1) for i in range(4)])
    assert [None if reply.has_error() else reply.content["config"]["seen"] for reply in replies] == [1, None, 2, 3]


def test_large_and_small_arrays_arrive_whole(any_grid):
    node_id = list(any_grid.get_node_ids())[3]

    def hoard(value):
        arrays = ArrayRecord({"w": Array(np.full((300, 400), value)), "b": Array(np.full(3, value))})
        (reply,) = any_grid.send_and_receive([Message(RecordDict({"arrays": arrays}), node_id, "query.hoard")])
        assert len(arrays["w"].data) > 300 * 400 * 8  # the server's record is as it was
        return reply.content["before"]

    assert len(hoard(1.0)) == 0
    hoarded = hoard(2.0)
    assert list(hoarded) == ["w", "b"]
    np.testing.assert_array_equal(hoarded["w"].numpy(), np.full((300, 400), 1.0))
    np.testing.assert_array_equal(hoarded["b"].numpy(), np.full(3, 1.0))


@pytest.fixture(params=["grid", "processes"])
def local(request):
    """Return a grid on this machine, with or without workers."""
    return request.getfixturevalue(request.param)


def test_flowers_fedavg_learns_the_same_through_a_window(local):
    def final(own):
        random.seed(2)
        result = FedAvg().start(own, ArrayRecord({"w": Array(np.ones(3))}), num_rounds=2)
        return result.arrays["w"].numpy().tolist(), result.evaluate_metrics_clientapp

    assert final(local) == final(Windowed(local, 1)) == final(Windowed(local, 3))


def test_clients_that_spoil_what_they_got_spoil_nobody_elses(local):
    shared = RecordDict(
        {"arrays": ArrayRecord({"w": Array(np.full(100_000, 3.0))}), "config": ConfigRecord({"a": [1]})}
    )
    kinds = ("query.spoil", "evaluate") * 2
    messages = [Message(shared, node_id, kind) for node_id, kind in zip(local.get_node_ids(), kinds, strict=True)]
    replies = list(local.send_and_receive(messages))
    assert [reply.content["config"]["size"] for reply in replies[::2]] == [1, 1]
    assert [reply.content["metrics"]["mean"] for reply in replies[1::2]] == [3.0, 3.0]
    assert dict(shared["config"]) == {"a": [1]}
    local.set_run(local.run)  # every node begins it anew, for the next test


def test_a_reply_that_was_taken_is_freed_at_once(local):
    gc.disable()
    try:
        arrays = ArrayRecord({"w": Array(np.zeros(100_000))})
        messages = [Message(RecordDict({"arrays": arrays}), node_id, "train") for node_id in local.get_node_ids()]
        sent, slice_, traces = [weakref.ref(one) for one in messages], weakref.ref(arrays), []
        replies = Windowed(local, 2).send_and_receive(messages)
        del messages, arrays
        for reply in replies:
            traces.append(weakref.ref(reply.content["arrays"]))
            del reply
            assert traces[-1]() is None
        assert len(traces) == 4
        del replies
        assert [trace() for trace in sent] == [None] * 4
        assert slice_() is None
    finally:
        gc.enable()


def test_the_death_of_a_process_names_the_node_and_the_grid_goes_on(processes, ask):
    before = pids_of(processes, ask)
    first, second, third, fourth = processes.get_node_ids()
    processes.send_and_receive([ask(second, "count")])
    messages = [ask(first, "process"), ask(second, "die"), ask(third, "process"), ask(fourth, "process")]
    replies = list(processes.send_and_receive(messages))
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert replies[1].error.reason == f"The process that ran node {second} (partition 1) ended with exit code 7."
    assert replies[1].metadata.src_node_id == second
    assert replies[1].metadata.reply_to_message_id == messages[1].metadata.message_id
    assert len(pids_of(processes, ask) & before) == 1
    (reply,) = processes.send_and_receive([ask(second, "count")])
    assert reply.content["config"]["seen"] > 1  # its state did not die with the process


def test_idle_workers_that_were_killed_are_replaced_without_an_error(workers, ask, gone):
    before = pids_of(workers, ask)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):  # an actor is no child of this process
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it is a zombie before its last thread has ended
    assert gone(before, zombies=False)
    assert pids_of(workers, ask).isdisjoint(before)


def test_clients_at_work_at_the_timeout_are_ended_and_left_out(workers, ask):
    first, second, third, fourth = workers.get_node_ids()
    before, deaths = pids_of(workers, ask), workers.deaths
    messages = [ask(first, "sleep", seconds=600.0), ask(second, "process"), ask(third, "sleep", seconds=600.0)]
    messages.append(ask(fourth, "sleep", seconds=600.0))  # never begun
    began = time.monotonic()
    replies = list(workers.send_and_receive(messages, timeout=2.0))
    assert time.monotonic() - began < 120
    assert [reply.metadata.src_node_id for reply in replies] == [second]
    assert pids_of(workers, ask).isdisjoint(before)
    assert workers.deaths == deaths


def test_what_cannot_be_sent_back_is_an_error_reply(workers, ask):
    node_id = next(iter(workers.get_node_ids()))
    (reply,) = workers.send_and_receive([ask(node_id, "unsendable")])
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "pickle" in reply.error.reason
    assert not any(reply.has_error() for reply in workers.send_and_receive([ask(node_id, "configs")]))


def test_what_cannot_be_sent_out_is_an_error_reply(processes, ask):
    message = ask(next(iter(processes.get_node_ids())), "configs")
    message.metadata.__dict__["strange"] = lambda: None
    (reply,) = processes.send_and_receive([message])
    assert reply.error.code == ErrorCode.UNKNOWN
    assert "pickle" in reply.error.reason


def test_a_reply_can_be_pulled_while_another_client_is_at_work(workers, ask):
    first, second, *_ = workers.get_node_ids()
    ids = list(workers.push_messages([ask(first, "sleep", seconds=600.0), ask(second, "sleep", seconds=0.0)]))
    assert workers.wait_for_replies([ids[1]], timeout=120.0) == [ids[1]]
    assert [reply.metadata.reply_to_message_id for reply in workers.pull_messages(ids)] == [ids[1]]
    workers.cancel(ids)


def test_close_ends_idle_and_busy_processes_at_once(ask, gone):
    with LocalGrid("odd_clients:app", 2, processes=2) as grid:
        pids = pids_of(grid, ask)
        grid.push_messages([ask(next(iter(grid.get_node_ids())), "sleep", seconds=600.0)])
        time.sleep(0.1)
        began = time.monotonic()
    assert len(pids) == 2
    assert gone(pids, 0.0)  # nor are they zombies
    assert time.monotonic() - began < 120
