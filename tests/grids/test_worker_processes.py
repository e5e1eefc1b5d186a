"""Where worker processes find their ClientApp, and that none outlives what started it."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from flwr.clientapp import ClientApp

from heterofl_flwr.compat import ErrorCode
from heterofl_flwr.errors import ConfigError
from heterofl_flwr.grids import LocalGrid, worker_pool
from heterofl_flwr.grids.apps import reference
from heterofl_flwr.grids.processes import KEY, Process, kill_with_children

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("client_app", "complaint"),
    [
        (ClientApp(), "no module holds under a name"),
        (None, "client_app is None; expected a ClientApp or 'module:attribute'"),
        ("raises_on_import:app", "in a worker process: (?s:.*)no data set here"),
        ("dies_on_import:app", "ended with exit code 5 while it loaded client_app 'dies_on_import:app'"),
    ],
)
def test_an_app_that_no_worker_can_load_raises(client_app, complaint):
    with pytest.raises(ConfigError, match=complaint):
        LocalGrid(client_app, 1, processes=2)  # a process for a node, and no more


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"__spec__": ModuleSpec("my_app.run", None)}, "my_app.run:app"),  # python -m my_app.run
        ({"__file__": "/somewhere/script.py"}, "script:app"),
    ],
)
def test_an_app_is_found_by_the_name_of_its_module_or_script(monkeypatch, attributes, expected):
    import odd_clients

    assert reference(odd_clients.app) == "odd_clients:app"
    main = ModuleType("__main__")
    vars(main).update(app=ClientApp(), **attributes)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setitem(sys.modules, "__mp_main__", main)  # multiprocessing's second name for it
    assert reference(main.app) == expected


def test_an_app_of_a_notebook_is_not_found(monkeypatch):
    main = ModuleType("__main__")
    main.app = ClientApp()
    monkeypatch.setitem(sys.modules, "__main__", main)
    with pytest.raises(ConfigError, match="other processes cannot import it"):
        reference(main.app)


@pytest.mark.slow
def test_a_process_that_cannot_be_replaced_is_an_error_until_it_can(tmp_path, monkeypatch, ask):
    monkeypatch.setattr(worker_pool, "LOADS", 1)  # each takes seconds; test_worker_pool.py has more of them
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "fleeting_clients.py"
    module.write_text("from odd_clients import app")
    with LocalGrid("fleeting_clients:app", 1, processes=2) as grid:
        node_id = next(iter(grid.get_node_ids()))
        module.rename(tmp_path / "gone.py")  # the process has loaded it
        grid.send_and_receive([ask(node_id, "die")])
        (reply,) = grid.send_and_receive([ask(node_id, "process")])
        assert reply.error.code == ErrorCode.LOAD_CLIENT_APP_EXCEPTION
        assert "'fleeting_clients:app' cannot be loaded" in reply.error.reason
        (tmp_path / "gone.py").rename(module)
        grid.send_and_receive([ask(node_id, "process")])  # the process for this one may have been started before
        assert not any(reply.has_error() for reply in grid.send_and_receive([ask(node_id, "process")]))


def test_a_worker_ended_while_it_is_replaced_stays_ended(monkeypatch):
    worker = Process("odd_clients:app")
    worker.load()
    worker.kill()
    start = worker.start

    def start_late():
        worker.kill()  # as another thread may, at a timeout
        start()

    monkeypatch.setattr(worker, "start", start_late)
    with pytest.raises(ConfigError, match="was ended by SIGKILL while it loaded"):
        worker.revive()
    assert worker.stop() == -signal.SIGKILL


SCRIPT = """
import os, sys, time
import flwr.app as fa, flwr.clientapp as fc

app = fc.ClientApp()

@app.query("pid")
def pid(message, context):
    return fa.Message(fa.RecordDict({"config": fa.ConfigRecord({"pid": os.getpid()})}), reply_to=message)

@app.query("sleep")
def sleep(message, context):
    time.sleep(600)

def main(how):
    from heterofl_flwr.grids import LocalGrid  # here, because it loads torch, which workers do not need
    grid = LocalGrid(app, 2, processes=2)
    ids = list(grid.get_node_ids())
    replies = grid.send_and_receive([fa.Message(fa.RecordDict(), node_id, "query.pid") for node_id in ids * 4])
    print(*{reply.content["config"]["pid"] for reply in replies}, flush=True)
    if how == "idle":
        time.sleep(600)
    else:
        grid.send_and_receive([fa.Message(fa.RecordDict(), ids[0], "query.sleep")])
"""
GUARD = 'if __name__ == "__main__":\n    main(sys.argv[1])\n'


def start(folder, how, ending=GUARD):
    """Start the script above, in which the app is defined as well."""
    path = folder / "own_script.py"
    path.write_text(SCRIPT + ending)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, str(path), how], env=environment, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "sent"), [("busy", signal.SIGINT), ("idle", signal.SIGKILL)])
def test_no_process_outlives_its_script(tmp_path, gone, how, sent):
    with start(tmp_path, how) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        time.sleep(0.2)
        process.send_signal(sent)
    assert pids
    assert gone(pids)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_to_have_one(tmp_path):
    with start(tmp_path, "idle", ending="main(sys.argv[1])\n") as process:
        _, stderr = process.communicate(timeout=600)
    assert "ConfigError: in a worker process:" in stderr
    assert '`if __name__ == "__main__":`' in stderr


def test_a_busy_worker_ends_with_the_process_that_started_it():
    code = (
        "import sys, psutil; from heterofl_flwr.grids.processes import _end_with; "
        "_end_with(psutil.Process(int(sys.argv[1])))"
    )
    parent = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {code!r}, str(os.getpid())], process_group=0)\n"
        "print(child.pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, check=True, timeout=600)
    assert done.stdout.strip().isdigit()  # it comes only when the child, which holds the pipe too, has ended


@pytest.mark.slow
def test_a_worker_without_a_process_group_ends_with_what_it_has_started(monkeypatch, gone, ask):
    monkeypatch.delattr(os, "killpg")
    with LocalGrid("odd_clients:app", 1, processes=2) as grid:
        node_id = next(iter(grid.get_node_ids()))
        (reply,) = grid.send_and_receive([ask(node_id, "start")])
        (death,) = grid.send_and_receive([ask(node_id, "die")])
        assert death.error.reason.endswith("ended with exit code 7; what it had started may still run.")
        (own,) = grid.send_and_receive([ask(node_id, "start")])
    assert gone([own.content["config"]["pid"]])
    with suppress(psutil.NoSuchProcess):  # it may still run
        psutil.Process(reply.content["config"]["pid"]).kill()


def test_on_macos_a_group_of_which_all_have_ended_is_no_error(monkeypatch):
    def killpg(pid, sent):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "killpg", killpg)
    kill_with_children(5)


def test_whoever_connects_without_the_key_is_no_worker():
    worker = Process("odd_clients:app")
    with socket.create_connection(worker._server.getsockname()) as stranger:
        stranger.sendall(bytes(KEY))
        assert worker.load() is False
        assert stranger.recv(1) == b""
    worker.stop()
