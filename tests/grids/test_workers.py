"""``LocalGrid`` with worker processes: the same answers, and it survives what clients do to their process."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp.strategy import FedAvg

from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids import LocalGrid
from heterofl_flwr.grids.worker import is_inside

ROOT = Path(__file__).parents[2]


def configs(replies):
    return [dict(reply.content["config"]) for reply in replies]


def is_running(pid):
    """Return whether a process is there; one that has ended and was not reaped is a zombie, and counts."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pids, seconds=10.0):
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def pids_of(grid, ask):
    messages = [ask(node_id, "process", seconds=0.05) for node_id in grid.get_node_ids()]
    return {reply["pid"] for reply in configs(grid.send_and_receive(messages))}


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


def test_processes_last_and_keep_what_their_modules_cache(workers, ask):
    rounds = [
        configs(workers.send_and_receive([ask(node_id, "process", seconds=0.05) for node_id in workers.get_node_ids()]))
        for _ in range(3)
    ]
    pids = [{reply["pid"] for reply in replies} for replies in rounds]
    assert len(pids[0] | pids[1] | pids[2]) == 2
    assert os.getpid() not in pids[0]
    assert sum(max(r["answered"] for r in rounds[2] if r["pid"] == pid) for pid in pids[2]) >= 12
    assert rounds[0][0]["threads"] == "1"


def test_replies_come_in_the_order_of_the_messages(workers, ask):
    durations = dict(zip(workers.get_node_ids(), (0.3, 0.0, 0.1, 0.0), strict=True))
    replies = workers.send_and_receive([ask(node_id, "sleep", seconds=s) for node_id, s in durations.items()])
    assert [reply.metadata.src_node_id for reply in replies] == list(durations)


def test_a_reply_names_its_message_and_its_node(workers, ask):
    node_id = list(workers.get_node_ids())[2]
    message = ask(node_id, "identity")
    (reply,) = workers.send_and_receive([message])
    assert reply.metadata.reply_to_message_id == message.metadata.message_id
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (node_id, SUPERLINK_NODE_ID)
    assert dict(reply.content["config"]) == {"node_id": node_id, "run_id": workers.run.run_id}


@pytest.mark.parametrize("action", ["fail", "leave", "silent", "astray", "unheard_of"])
def test_errors_are_those_of_a_grid_without_processes(workers, grid, ask, action):
    def fail(on):
        (reply,) = on.send_and_receive([ask(next(iter(on.get_node_ids())), action)])
        return reply.error.code, reply.error.reason, reply.metadata.src_node_id

    assert fail(workers) == fail(grid)


def test_state_follows_its_node_to_any_process(workers, ask):
    first, *others = workers.get_node_ids()
    seen = []
    for busy in (0, 1, 2, 3):
        ahead = [ask(node_id, "process", seconds=0.05) for node_id in others[:busy]]
        *_, reply = workers.send_and_receive([*ahead, ask(first, "count")])
        seen.append((reply.content["config"]["seen"], reply.content["config"]["pid"]))
    assert [count for count, _ in seen] == [1, 2, 3, 4]


def test_a_nodes_messages_are_answered_one_after_the_other(workers, ask):
    node_id = list(workers.get_node_ids())[1]
    replies = workers.send_and_receive([ask(node_id, "count", fail=i == 1) for i in range(4)])
    assert [None if reply.has_error() else reply.content["config"]["seen"] for reply in replies] == [1, None, 2, 3]


def test_large_and_small_arrays_arrive_whole(workers):
    node_id = list(workers.get_node_ids())[3]

    def hoard(value):
        arrays = ArrayRecord({"w": Array(np.full((300, 400), value)), "b": Array(np.full(3, value))})
        (reply,) = workers.send_and_receive([Message(RecordDict({"arrays": arrays}), node_id, "query.hoard")])
        assert len(arrays["w"].data) > 300 * 400 * 8  # the server's record is as it was
        return reply.content["before"]

    assert len(hoard(1.0)) == 0
    hoarded = hoard(2.0)
    assert list(hoarded) == ["w", "b"]
    np.testing.assert_array_equal(hoarded["w"].numpy(), np.full((300, 400), 1.0))
    np.testing.assert_array_equal(hoarded["b"].numpy(), np.full(3, 1.0))


def test_the_death_of_a_process_names_the_node_and_the_grid_goes_on(workers, ask):
    before = pids_of(workers, ask)
    first, second, third, fourth = workers.get_node_ids()
    workers.send_and_receive([ask(second, "count")])
    messages = [ask(first, "process"), ask(second, "die"), ask(third, "process"), ask(fourth, "process")]
    replies = list(workers.send_and_receive(messages))
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert replies[1].error.reason == f"The process that ran node {second} (partition 1) ended with exit code 7."
    assert replies[1].metadata.src_node_id == second
    assert replies[1].metadata.reply_to_message_id == messages[1].metadata.message_id
    assert len(pids_of(workers, ask) & before) == 1
    (reply,) = workers.send_and_receive([ask(second, "count")])
    assert reply.content["config"]["seen"] > 1  # its state did not die with the process


def test_an_idle_process_that_was_killed_is_replaced_without_an_error(workers, ask):
    for pid in (before := pids_of(workers, ask)):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert pids_of(workers, ask).isdisjoint(before)


def test_clients_at_work_at_the_timeout_are_ended_and_left_out(workers, ask):
    first, second, third, fourth = workers.get_node_ids()
    before = pids_of(workers, ask)
    messages = [ask(first, "sleep", seconds=60.0), ask(second, "process"), ask(third, "sleep", seconds=60.0)]
    messages.append(ask(fourth, "sleep", seconds=60.0))  # never begun
    began = time.monotonic()
    replies = list(workers.send_and_receive(messages, timeout=1.0))
    assert time.monotonic() - began < 10
    assert [reply.metadata.src_node_id for reply in replies] == [second]
    assert wait_until_gone(before)
    assert len(pids_of(workers, ask)) == 2


def test_what_cannot_be_sent_back_is_an_error_reply(workers, ask):
    node_id = next(iter(workers.get_node_ids()))
    (reply,) = workers.send_and_receive([ask(node_id, "unsendable")])
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert "pickle" in reply.error.reason
    assert not any(reply.has_error() for reply in workers.send_and_receive([ask(node_id, "configs")]))


def test_what_cannot_be_sent_out_is_an_error_reply(workers, ask):
    message = ask(next(iter(workers.get_node_ids())), "configs")
    message.metadata.__dict__["strange"] = lambda: None
    (reply,) = workers.send_and_receive([message])
    assert reply.error.code == ErrorCode.UNKNOWN
    assert "pickle" in reply.error.reason


def test_the_most_costly_clients_begin_first(ask):
    costs = {}
    with LocalGrid("odd_clients:app", 5, processes=2, cost=lambda message: costs[message.metadata.dst_node_id]) as grid:
        costs.update(zip(grid.get_node_ids(), (1, 5, 3, 4, 2), strict=True))
        replies = configs(grid.send_and_receive([ask(node_id, "sleep", seconds=0.1) for node_id in costs]))
    began = [reply["began"] for reply in replies]
    assert max(began[1], began[3]) < min(began[2], began[4]) <= max(began[2], began[4]) < began[0]


def test_replies_can_be_pulled_when_they_are_there(workers, ask):
    slow, quick = (
        ask(node_id, "sleep", seconds=s)
        for node_id, s in zip(list(workers.get_node_ids())[:2], (0.5, 0.0), strict=True)
    )
    ids = list(workers.push_messages([slow, quick]))
    pulled = []
    deadline = time.monotonic() + 20
    while len(pulled) < 2 and time.monotonic() < deadline:
        pulled += [reply.metadata.reply_to_message_id for reply in workers.pull_messages(ids)]
        time.sleep(0.01)
    assert pulled == ids[::-1]


def test_close_ends_idle_and_busy_processes_at_once(ask):
    with LocalGrid("odd_clients:app", 2, processes=2) as grid:
        pids = pids_of(grid, ask)
        grid.push_messages([ask(next(iter(grid.get_node_ids())), "sleep", seconds=60.0)])
        time.sleep(0.1)
        began = time.monotonic()
    assert len(pids) == 2
    assert not any(map(is_running, pids))  # nor are they zombies
    assert time.monotonic() - began < 10


def test_an_app_is_found_by_the_name_that_a_module_gives_it(ask):
    import odd_clients

    with LocalGrid(odd_clients.app, 2, processes=2) as grid:
        assert os.getpid() not in pids_of(grid, ask)


@pytest.mark.parametrize(
    ("client_app", "complaint"),
    [
        (ClientApp(), "no module holds under a name"),
        ("no_such_module:app", "in a worker process: client_app 'no_such_module:app' cannot be loaded"),
        ("raises_on_import:app", "no data set here"),
        ("dies_on_import:app", "ended with exit code 5 while it loaded client_app 'dies_on_import:app'"),
    ],
)
def test_an_app_that_no_worker_can_load_is_refused(client_app, complaint):
    with pytest.raises(ConfigError, match=complaint):
        LocalGrid(client_app, 2, processes=2)


def test_this_process_is_no_worker():
    assert not is_inside()


SCRIPT = """
import os, sys, time
import flwr.app as fa, flwr.clientapp as fc

app = fc.ClientApp()

@app.query("pid")
def pid(message, context):
    return fa.Message(fa.RecordDict({"config": fa.ConfigRecord({"pid": os.getpid()})}), reply_to=message)

@app.query("sleep")
def sleep(message, context):
    time.sleep(60)

def main(how):
    from heterofl_flwr.grids import LocalGrid  # here, because it loads torch, which workers do not need
    grid = LocalGrid(app, 2, processes=2)
    ids = list(grid.get_node_ids())
    replies = grid.send_and_receive([fa.Message(fa.RecordDict(), node_id, "query.pid") for node_id in ids * 4])
    print(*{reply.content["config"]["pid"] for reply in replies}, flush=True)
    if how == "exit":
        grid.push_messages([fa.Message(fa.RecordDict(), ids[0], "query.sleep")])
    elif how == "idle":
        time.sleep(60)
    else:
        grid.send_and_receive([fa.Message(fa.RecordDict(), ids[0], "query.sleep")])
"""
GUARD = 'if __name__ == "__main__":\n    main(sys.argv[1])\n'


@pytest.fixture
def script(tmp_path):
    """Return a function that starts the script above, in which the app is defined as well."""
    started = []

    def start(how, ending=GUARD):
        path = tmp_path / "own_script.py"
        path.write_text(SCRIPT + ending)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, str(path), how], env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("how", "sent"), [("exit", None), ("busy", signal.SIGINT), ("idle", signal.SIGKILL)])
def test_no_process_outlives_its_script(script, how, sent):
    process = script(how)
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert pids, process.communicate()[1]
    if sent:
        time.sleep(0.2)
        process.send_signal(sent)
    process.wait(20)
    assert wait_until_gone(pids)


def test_a_script_without_a_guard_is_told_to_have_one(script):
    _, stderr = script("exit", ending="main(sys.argv[1])\n").communicate(timeout=60)
    assert "ConfigError: in a worker process:" in stderr
    assert '`if __name__ == "__main__":`' in stderr


NO_RAY = """
import sys

class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ray":
            raise ImportError("ray is blocked")

sys.meta_path.insert(0, NoRay())
import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import FedAvg
from heterofl_flwr.grids import LocalGrid, Windowed

for processes in (0, 2):
    with LocalGrid("odd_clients:app", 2, processes=processes) as grid:
        for each in (grid, Windowed(grid, 1)):
            result = FedAvg().start(each, ArrayRecord({"w": Array(np.zeros(1))}), num_rounds=1)
            print("RESULT", result.arrays["w"].numpy())
assert "ray" not in sys.modules
"""


def test_nothing_needs_ray(apps):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(apps)])}
    done = subprocess.run([sys.executable, "-c", NO_RAY], env=environment, capture_output=True, text=True)
    assert done.stdout.count("RESULT [1.66666667]") == 4, done.stderr
