"""What the end of Flower's log says."""

from pathlib import Path

import pytest

from heterofl_flwr.app.launch import log

SERVER = """\x1b[92mINFO \x1b[0m:      Starting logstream for run_id `1`
Successfully started run 4593224059433533812
\x1b[91mERROR \x1b[0m:     Simulation raised an exception
Traceback (most recent call last):
  File "/site-packages/flwr/serverapp/server_app.py", line 176, in __call__
    self._main(grid, context)
    ^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/apps/x/server.py", line 13, in main
    raise RuntimeError("the server's own fault")
RuntimeError: the server's own fault
\x1b[91mERROR \x1b[0m:     Exit Code: 700

An unhandled exception occurred when running the simulation.
"""

CLIENT = """\x1b[91mERROR \x1b[0m:     An exception was raised when processing a message by RayBackend
\x1b[91mERROR \x1b[0m:     \x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1, ip=192.0.2.2)
  File "/apps/x/client.py", line 11, in train
    raise RuntimeError("the client's own fault")
RuntimeError: the client's own fault

The above exception was the direct cause of the following exception:

ray.exceptions.RayTaskError(ClientAppException): \x1b[36mray::ClientAppActor.run()\x1b[39m (pid=1)
flwr.clientapp.client_app.ClientAppException:
Exception ClientAppException occurred. Message: the client's own fault
\x1b[92mINFO \x1b[0m:      aggregate_train: Received 0 results and 3 failures
"""

OURS = """Traceback (most recent call last):
  File "/x/flat.py", line 79, in from_flat
    raise ConfigError(text)
heterofl_flwr.errors.ConfigError: 2 settings are not usable:
  num-rounds: found 'x' (str), expected an integer
  train.epochs: found 1.5 (float), expected an integer
ERROR :     Exit Code: 700
"""

REFUSED = """╭─ Error ────────────────────────╮
│ Failed to load the app.        │
╰────────────────────────────────╯
"""


@pytest.fixture
def lines(tmp_path):
    def read(text: str) -> list[str]:
        path = tmp_path / "flower.log"
        path.write_text(text, encoding="utf-8")
        return log.lines_of(path)

    return read


def test_lines_have_no_colours_and_no_levels(lines):
    assert lines(SERVER)[:3] == [
        "Starting logstream for run_id `1`",
        "Successfully started run 4593224059433533812",
        "Simulation raised an exception",
    ]
    assert log.lines_of(Path("/nowhere/at/all.log")) == []


def test_the_run_is_the_one_that_flower_started(lines):
    assert log.run_id(lines(SERVER)) == "4593224059433533812"
    assert log.run_id(lines(REFUSED)) is None


def test_the_cause_is_what_was_raised_and_where(lines):
    assert log.cause(lines(SERVER)) == "RuntimeError: the server's own fault"
    assert log.traceback(lines(SERVER)) == [
        '  File "/site-packages/flwr/serverapp/server_app.py", line 176, in __call__',
        "    self._main(grid, context)",
        '  File "/apps/x/server.py", line 13, in main',
        """    raise RuntimeError("the server's own fault")""",
    ]


def test_what_passes_an_exception_on_is_not_the_cause(lines):
    assert log.cause(lines(CLIENT)) == "RuntimeError: the client's own fault"
    assert log.traceback(lines(CLIENT))[-1] == """    raise RuntimeError("the client's own fault")"""


def test_if_nothing_else_was_raised_it_is(lines):
    text = "ray.exceptions.ActorDiedError: The actor died unexpectedly.\n"
    assert log.cause(lines(text)) == "ActorDiedError: The actor died unexpectedly."


def test_our_own_errors_are_told_whole_and_without_code(lines):
    assert log.cause(lines(OURS)).splitlines() == [
        "2 settings are not usable:",
        "  num-rounds: found 'x' (str), expected an integer",
        "  train.epochs: found 1.5 (float), expected an integer",
    ]
    assert log.traceback(lines(OURS)) == []


def test_without_an_exception_the_end_of_the_log_is_shown(lines):
    assert log.cause(lines(REFUSED)) == ""
    assert log.traceback(lines(REFUSED)) == ["Error", "Failed to load the app."]


def test_a_round_in_which_all_failed_is_found(lines):
    assert log.failed_round(lines(CLIENT)) == "in a round all 3 clients that were asked failed"
    assert log.failed_round(lines("INFO :      aggregate_train: Received 3 results and 0 failures\n")) is None
    assert log.failed_round(lines("INFO :      aggregate_evaluate: Received 0 results and 0 failures\n")) is None
