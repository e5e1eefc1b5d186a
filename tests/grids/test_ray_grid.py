"""``RayGrid``: what ``LocalGrid`` does, in Ray actors, which are replaced when they die; and how it joins a cluster."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from heterofl_flwr.app import server_app
from heterofl_flwr.app.workload import load_workload
from heterofl_flwr.common.errors import ConfigError
from heterofl_flwr.grids import LocalGrid, RayGrid
from heterofl_flwr.transport.compat import ErrorCode
from tests.federation.tiny import Keep, equal

ray_actors = pytest.importorskip("heterofl_flwr.grids.ray_actors", exc_type=ImportError)
ray_dispatch = pytest.importorskip("heterofl_flwr.grids.ray_dispatch", exc_type=ImportError)

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.simulation,
    pytest.mark.filterwarnings("ignore:Exception ignored in. .function Popen"),  # Ray does not wait for its processes
]


def processes_of(grid, ask):
    """Return what each node of a grid tells of its process."""
    messages = [ask(node_id, "process", seconds=0.1) for node_id in grid.get_node_ids()]
    return [reply.content["config"] for reply in grid.send_and_receive(messages)]


def pids_of(grid, ask):
    return {one["pid"] for one in processes_of(grid, ask)}


def wait_for_both(grid, ask):
    """Return the processes of a grid's two actors; one may be ready long before the other."""
    until = time.monotonic() + 120
    while len(found := pids_of(grid, ask)) < 2 and time.monotonic() < until:
        pass
    return found


@pytest.mark.slow
def test_actors_last_and_keep_what_their_modules_cache(actors, ask):
    wait_for_both(actors, ask)
    first, _, last = [processes_of(actors, ask) for _ in range(3)]
    pids = {reply["pid"] for reply in (*first, *last)}
    assert len(pids - {os.getpid()}) == len(pids) == 2
    assert sum(max(reply["answered"] for reply in last if reply["pid"] == pid) for pid in pids) >= 12
    assert {(reply["OMP_NUM_THREADS"], reply["CUDA_VISIBLE_DEVICES"]) for reply in first} == {("1", "")}


@pytest.mark.slow
def test_idle_actors_that_were_killed_are_replaced(actors, ask, gone):
    before = pids_of(actors, ask)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert gone(before)
    assert pids_of(actors, ask).isdisjoint(before)


@pytest.mark.slow
def test_clients_at_work_hold_up_no_other_and_are_ended_when_cancelled(actors, ask, caplog):
    before = wait_for_both(actors, ask)
    durations = zip(actors.get_node_ids(), (600.0, 0.0, 600.0, 600.0), strict=True)  # the last never begins
    ids = list(actors.push_messages([ask(node_id, "sleep", seconds=seconds) for node_id, seconds in durations]))
    assert actors.wait_for_replies([ids[1]]) == [ids[1]]
    assert [reply.metadata.reply_to_message_id for reply in actors.pull_messages(ids)] == [ids[1]]
    actors.cancel(ids)
    assert pids_of(actors, ask).isdisjoint(before)
    assert "died" not in caplog.text


@pytest.mark.slow
def test_an_actor_that_always_dies_tells_its_last_words(actors, ask, caplog, monkeypatch):
    monkeypatch.setattr(ray_dispatch, "RETRIES", 1)
    ids = list(actors.get_node_ids())
    with caplog.at_level(logging.WARNING):
        replies = list(actors.send_and_receive([ask(ids[0], "count"), ask(ids[1], "die"), ask(ids[2], "count")]))
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.code == ErrorCode.CLIENT_APP_CRASHED
    assert replies[1].error.reason.startswith(f"The process that ran node {ids[1]} (partition 1) died: ")
    assert replies[1].error.reason.endswith("last words). 1 before it died as well.")
    assert caplog.text.count("Another one is given its messages") == 1


def test_a_slice_is_put_into_the_object_store_once_and_freed(machine, monkeypatch):
    puts = []
    put = machine.put

    def noted(value):
        reference = put(value)
        puts.append((len(value), reference.hex()))
        return reference

    monkeypatch.setattr(machine, "put", noted)
    slices = [ArrayRecord({"w": Array(np.full(50_000, value)), "v": Array(np.zeros(50_000))}) for value in (1, 2)]
    with RayGrid("odd_clients:app", 4, at_once=1) as grid:  # in quick tests; a second actor takes seconds
        pairs = zip(grid.get_node_ids(), slices * 2, strict=True)
        messages = [Message(RecordDict({"arrays": slice_}), node_id, "evaluate") for node_id, slice_ in pairs]
        replies = list(grid.send_and_receive(messages))
        assert [reply.content["metrics"]["mean"] for reply in replies] == [1.0, 2.0] * 2
        assert [length for length, _ in puts] == [2, 2]
        slices[0]["w"] = Array(np.full(50_000, 5.0))
        (reply,) = grid.send_and_receive([messages[0]])
        assert reply.content["metrics"]["mean"] == 5.0
        held = machine._private.worker.global_worker.core_worker.get_all_reference_counts()
        assert held.keys().isdisjoint(own for _, own in puts)


MORTAL = """
import os, signal
from pathlib import Path
from flwr.clientapp import ClientApp
from heterofl_flwr.app.client_app import app as inner

class Mortal(ClientApp):
    def __call__(self, message, context):
        kind = message.metadata.message_type
        mark = Path(__file__).parent / kind
        if context.node_config["partition-id"] == 1 and kind in ("train", "query.moments") and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(message, context)

app = Mortal()
"""
STEPS = {
    **{"data.name": "digits", "model.hidden": "8", "train.epochs": 1, "evaluate.every": 1, "sample.fraction": 1.0},
    **{"engine.name": "plain", "engine.device": "cpu", "devices.profile": "edge"},
    **{"num-rounds": 5, "asynchronous.size": 2, "asynchronous.concurrency": 4},
}


@pytest.mark.slow
def test_steps_of_simulated_devices_are_those_of_a_local_grid_whoever_is_killed(machine, tmp_path, monkeypatch, caplog):
    (tmp_path / "mortal_clients.py").write_text(MORTAL)
    monkeypatch.syspath_prepend(tmp_path)

    def run(make, app="heterofl_flwr.app.client_app:app", **options):
        keep = Keep()
        with make(app, 5, run_config=STEPS, **options) as grid:
            server_app.run(grid, load_workload(STEPS), [keep])
        steps = [(record.train, record.evaluate, record.failures) for record in keep.records]
        return steps, keep.progress[-1].state

    expected, state = run(LocalGrid)
    steps, found = run(RayGrid, at_once=2, app="mortal_clients:app")
    assert steps == expected
    assert equal(found, state)
    assert caplog.text.count("(partition 1) died: ") == 2


@pytest.mark.slow
def test_an_app_that_no_module_holds_is_sent(machine):
    app, where = ClientApp(), os.getpid()

    @app.query()
    def query(message, context):
        return Message(RecordDict({"config": ConfigRecord({"other": os.getpid() != where})}), reply_to=message)

    with RayGrid(app, 2, at_once=1) as grid:
        messages = [Message(RecordDict(), node_id, "query") for node_id in grid.get_node_ids()]
        assert [reply.content["config"]["other"] for reply in grid.send_and_receive(messages)] == [True, True]


@pytest.mark.parametrize(
    ("cpus", "gpus", "has", "expected"),
    [
        (3, 0, [(8, 0)], 2),
        (3, 0, [(5, 0), (4, 0)], 2),
        (0.1, 0, [(1, 0)], 10),
        (0, 0, [(8, 0)], 8),
        (1, 0.4, [(8, 2)], 4),  # two on each GPU: a fifth one would need a half of both
        (1, 0.1, [(8, 1)], 8),
        (1, 2, [(8, 3), (8, 1)], 1),
        (1, 0.5, [(8, 0)], 0),
        (1, 1, [(8, 0), (2, 4)], 2),
    ],
)
def test_so_many_actors_fit_on_a_cluster(monkeypatch, cpus, gpus, has, expected):
    nodes = [
        {"Alive": True, "Resources": {"CPU": cores, **({"GPU": number} if number else {})}} for cores, number in has
    ]
    nodes.append({"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}})
    monkeypatch.setattr(ray_actors.ray, "nodes", lambda: nodes)
    assert ray_actors.ActorOptions("a:b", cpus, gpus, {}).room() == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client_app", "num_gpus", "complaint"),
    [
        ("odd_clients:app", 3, "needs num_cpus=1 and num_gpus=3; the cluster has 8 CPUs and 2 GPUs"),
        ("odd_clients:app", 1, "in an actor: on .*: Ray counts a GPU on .*, and torch .* finds none there"),
        ("no_such_module:app", 0, "in an actor: on .*: client_app is '.*', which"),
        ("dies_on_import:app", 0, "in an actor: .*it died: .* while it loaded"),
    ],
)
def test_actors_that_cannot_start_raise(machine, client_app, num_gpus, complaint):
    with pytest.raises(ConfigError, match=complaint):
        RayGrid(client_app, 2, at_once=1, num_gpus=num_gpus)


@pytest.mark.parametrize(
    ("name", "value"),
    [("at_once", 0), ("num_cpus", -1), ("num_gpus", "half"), ("num_gpus", True), ("num_gpus", 1.5), ("cohort", 0)],
)
def test_invalid_arguments_raise(name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value!r}; expected"):
        RayGrid("odd_clients:app", 2, **{name: value})


SCRIPT = """
import signal, sys
import psutil
from flwr.app import ConfigRecord, Message, RecordDict
from heterofl_flwr.grids import RayGrid

handler = signal.getsignal(signal.SIGTERM)
grid = RayGrid("odd_clients:app", 2, at_once=1)
assert signal.getsignal(signal.SIGTERM) == handler
content = RecordDict({"config": ConfigRecord({"seconds": 600.0})})
grid.push_messages([Message(content, node_id, "query.sleep") for node_id in grid.get_node_ids()])
import ray
print(ray.get_runtime_context().gcs_address)
children = psutil.Process().children(recursive=True)
words = " ".join(argument for child in children for argument in child.cmdline())
assert "raylet" in words and "monitor.py" not in words and "dashboard.py" not in words  # only clusters need them
folder = next(argument for child in children for argument in child.cmdline() if argument.startswith("--temp_dir="))
print(folder.partition("=")[2], *(child.pid for child in children), flush=True)
sys.stdin.readline()
grid.close()
print("closed", flush=True)
sys.stdin.read()
"""


def start(script):
    """Run a script in a process of its own, which starts its own Ray."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests/grids/apps")])}
    environment.pop("RAY_ADDRESS", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, **pipes)


HEADLESS = """
import psutil
from heterofl_flwr.common.errors import HeteroFLError
from heterofl_flwr.grids import RayGrid

grid = RayGrid("odd_clients:app", 1)
(server,) = [child for child in psutil.Process().children() if "gcs_server" in child.name()]
server.kill()
server.wait()
try:
    grid.wait_for_replies(grid.push_messages([]))
except HeteroFLError as error:
    grid.close()
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_run_whose_ray_has_ended_closes_its_grid_and_can_report_it():
    with start(HEADLESS) as script:
        assert script.stdout.readline().startswith("Ray cannot go on: its process gcs_server has ended")
        script.kill()  # Ray would end it after a minute


@pytest.mark.slow
def test_nothing_is_left_of_a_ray_that_a_closed_grid_has_started(gone):
    with start(SCRIPT) as script:
        address = script.stdout.readline().strip()
        folder, *pids = script.stdout.readline().split()
        assert Path(folder).parent.stat().st_mode & 0o077 == 0
        stranger = [sys.executable, "-c", f"import ray; ray.init({address!r})"]
        few = {"HOME": folder, "RAY_NUM_REDIS_GET_RETRIES": "2"}  # Ray itself tries for 20 seconds
        answer = subprocess.run(stranger, env=few, check=False, capture_output=True, text=True)
        assert "Authentication token is missing or incorrect" in answer.stderr
        script.stdin.write("\n")
        script.stdin.flush()
        assert script.stdout.readline() == "closed\n"
        assert gone(map(int, pids))
        assert not Path(folder).parent.exists()


ray_session = pytest.importorskip("heterofl_flwr.grids.ray_session", exc_type=ImportError)


@pytest.fixture
def place(monkeypatch):
    """Name an address of this machine as the cluster's, at which nobody listens yet."""
    monkeypatch.setattr(ray_session.ray, "is_initialized", lambda: False)
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{place.getsockname()[1]}")
        yield place


def test_an_address_at_which_nobody_listens_raises_soon(place):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"no Ray answers at RAY_ADDRESS='127\.0\.0\.1:.*refused"):
        ray_session._connect({}, ExitStack())
    assert time.monotonic() - began < ray_session.SECONDS_TO_CONNECT


def test_the_address_of_ray_client_is_refused_with_the_one_to_use(place, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match=r"'ray://head:10001'.*RAY_ADDRESS=head:6379"):
        ray_session._connect({}, ExitStack())


@pytest.mark.parametrize(("mode", "warned"), [(None, True), ("disabled", True), ("token", False)])
def test_a_cluster_without_a_token_is_warned_of(place, monkeypatch, caplog, mode, warned):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    if mode:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(ray_session, "_init", lambda: None)
    place.listen()
    with caplog.at_level(logging.WARNING):
        ray_session._connect({}, ExitStack())
    assert ("asks for no token" in caplog.text) == warned
