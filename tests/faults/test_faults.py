"""What faults cost, each in a small run of its own: docs/howto/runs.md sums them up."""

import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from heterofl_flwr.common.errors import RoundError
from heterofl_flwr.report import RunFolder
from tests.faults.runs import CLIENTS, HIT, ROUNDS, STRUCK, Fault, Grid, Killed, play
from tests.federation.tiny import equal


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """Return a function that gives the models of a run that only lacks some replies."""
    return cache(lambda missing=frozenset(): play(tmp_path_factory.mktemp("run"), missing=missing))


def check_run(folder, found, expected, failures=()):
    """Check that a run ended with the models that it should, and that its history has all rounds and failures."""
    assert equal(found, expected)
    history = RunFolder(folder).history()
    assert [record.server_round for record in history] == list(range(1, ROUNDS + 1))
    assert {(own, record.server_round) for record in history for own in record.failures} == set(failures)


def fail():
    raise RuntimeError("made to fail")


@pytest.mark.parametrize("place", [pytest.param("begins", marks=pytest.mark.release), "steps", "trained"])
def test_a_client_that_raises_costs_its_reply_alone(tmp_path, without, place):
    fault = Fault(place, act=fail, partition=HIT)
    lost = {(HIT, STRUCK)}
    check_run(tmp_path, play(tmp_path, fault), without(frozenset(lost)), lost)
    assert "made to fail" in RunFolder(tmp_path).history()[STRUCK - 1].failures[HIT]


class Late(Grid):
    """A grid whose lost replies come a round late, before all others."""

    late = ()

    def received(self, replies, lost):
        self.late, late = list(lost), self.late
        return [*late, *replies]


THEN = {(HIT, STRUCK)}
COMES = {(HIT, 1), (HIT, 2)}
LEAVES = {(HIT, STRUCK), (HIT, ROUNDS)}
NODES = {
    "a node joins": ({"away": COMES}, COMES, ()),
    "leaves between rounds": ({"away": LEAVES}, LEAVES, ()),
    "leaves with its reply": ({"missing": THEN, "away": LEAVES - THEN}, LEAVES, THEN),
    "is back after a round": ({"away": THEN}, THEN, ()),
    "hangs for a round": ({"missing": THEN}, THEN, THEN),
    "answers a round late": ({"grid": Late, "missing": THEN}, THEN, THEN),
}


QUICK = {"leaves with its reply", "answers a round late"}


@pytest.mark.parametrize(
    ("how", "lost", "failures"),
    [pytest.param(*own, id=name, marks=[pytest.mark.release] * (name not in QUICK)) for name, own in NODES.items()],
)
def test_nodes_that_come_and_go_cost_their_replies_alone(tmp_path, without, how, lost, failures):
    check_run(tmp_path, play(tmp_path, **how), without(frozenset(lost)), failures)


def test_a_round_with_too_few_replies_is_trained_again(tmp_path, without):
    fault, least = Fault("steps", act=fail, partition=HIT), {"sample.min-replies": CLIENTS}
    with pytest.raises(RoundError, match="3 of 4 clients gave a usable reply, expected at least 4"):
        play(tmp_path, fault, **least)
    check_run(tmp_path, play(tmp_path, fault, resume=True, **least), without())
    assert fault.rounds_lost == 1


@pytest.mark.parametrize(
    ("place", "number", "lost"),
    [
        pytest.param("sent", STRUCK, 0, marks=pytest.mark.release),
        pytest.param("steps", STRUCK, 0, marks=pytest.mark.release),
        ("halfway", STRUCK, 1),
        pytest.param("saved", STRUCK, 0, marks=pytest.mark.release),
        ("models", ROUNDS, 0),
    ],
)
def test_a_server_that_ends_loses_one_round_at_most(tmp_path, without, place, number, lost):
    fault = Fault(place, number)
    with pytest.raises(Killed):
        play(tmp_path, fault)
    check_run(tmp_path, play(tmp_path, fault, resume=True), without())
    assert fault.rounds_lost == lost


def flip(data):
    """Turn a bit."""
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        (f"checkpoint/round-{STRUCK:06d}.safetensors", flip, r"round-\d+.json is damaged .*trying the one before"),
        ("history.jsonl", lambda data: data[:-9], "ends with an incomplete line"),
    ],
)
def test_a_damaged_file_costs_one_round(tmp_path, without, caplog, name, damage, says):
    fault = Fault("saved")
    with pytest.raises(Killed):
        play(tmp_path, fault)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    check_run(tmp_path, play(tmp_path, fault, resume=True), without())
    assert fault.rounds_lost == 1
    assert re.search(says, caplog.text)


def serve(*words):
    """Run a server in a process of its own; return its exit code and what it printed."""
    command = [sys.executable, "-m", "tests.faults.server", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300)
    return done.returncode, done.stdout + done.stderr


ENDS = {
    "killed": ("halfway", -signal.SIGKILL, ""),
    "terminated": ("steps", -signal.SIGTERM, ""),
    "interrupted": ("steps", 130, ""),
    "disk-full": ("halfway", 2, "cannot write .*Make room"),
}


@pytest.mark.parametrize(
    "name", [pytest.param(own, marks=pytest.mark.slow if own == "killed" else pytest.mark.release) for own in ENDS]
)
def test_a_server_process_that_ends_goes_on_bit_for_bit(tmp_path, without, name):
    place, code, says = ENDS[name]
    found, text = serve(tmp_path / "run", name, place)
    assert found == code, text
    assert re.search(says, text)
    assert RunFolder(tmp_path / "run").load_checkpoint().server_round == STRUCK - 1
    check_run(tmp_path / "run", play(tmp_path / "run", resume=True), without())
